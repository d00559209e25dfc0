"""`maestro prepare`: each adapter on synthetic rows of the published schema and on the real rows in shared/data."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import random
import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.config.prepare import PrepareConfig
from openrlhf_maestro.config.sections import DataSection
from openrlhf_maestro.data import load_prompts
from openrlhf_maestro.data.prepare import RECIPES, Prepared, prepare
from openrlhf_maestro.data.prepare.drawing import normalised
from openrlhf_maestro.errors import ConfigError, DataError, UserError

SHARED = Path(os.environ.get("MAESTRO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no rows of published data sets in {SHARED}")

Rows = list[dict[str, Any]]
SPLITS = ("train", "validation", "test")


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def run(name: str, source: Path | str | None, out: Path, *options: str) -> Prepared:
    given = [] if source is None else [f"--source={source}"]
    return prepare(load_config(PrepareConfig, [f"--dataset={name}", f"--out={out}", *given, *options]))


def read(folder: Path) -> dict[str, Rows]:
    files = {split: folder / f"{split}.jsonl" for split in SPLITS}
    return {
        split: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for split, file in files.items()
        if file.exists()
    }


def every(folder: Path) -> Rows:
    return [row for rows in read(folder).values() for row in rows]


def check(prepared: Prepared) -> dict[str, Rows]:
    """What holds for every preparation; returns the rows of each split."""
    card = yaml.safe_load((prepared.folder / "card.yaml").read_text(encoding="utf-8"))
    assert card == prepared.card
    found = read(prepared.folder)
    assert {split: part["rows"] for split, part in card["splits"].items()} == {
        s: len(rows) for s, rows in found.items()
    }
    for part in card["splits"].values():
        assert hashlib.sha256((prepared.folder / part["file"]).read_bytes()).hexdigest() == part["sha256"]
    rows = every(prepared.folder)
    assert card["read"] == sum(card["files"].values()) == card["kept"] + sum(card.get("dropped", {}).values())
    assert card["kept"] == len(rows) > 0 and all(card[name] for name in ("licence", "source", "preparation"))
    assert len({normalised(row["prompt"]) for row in rows}) == len({row["id"] for row in rows}) == len(rows)
    for split, part in found.items():
        for row in part:
            assert list(row) == ["id", "datasource", "prompt", "reference", "split", "meta"]
            assert row["split"] == split and row["prompt"].strip() and row["reference"].strip()
            assert "<think>" not in row["prompt"] and "<answer>" not in row["prompt"]
            assert not re.search(r"(?m)^[A-Z][.:)] ?(nan|NaN)?$", row["prompt"])
            assert not re.search(r"(?m)^([A-Z])[.:] \1[.:] ", row["prompt"] + "\n" + row["reference"])
        data = DataSection(prompt_dataset=str(prepared.folder), input_template="plain")
        prompts = load_prompts(
            data,
            dataset=data.prompt_dataset,
            split=split,
            needs_reference=True,
            needing="this test",
            max_samples=10**9,
            render=None,
            max_prompt_tokens=1,
        )
        assert [prompt.question for prompt in prompts] == [row["prompt"] for row in part]
        assert [prompt.reference for prompt in prompts] == [row["reference"] for row in part]
        assert {prompt.datasource for prompt in prompts} == {row["datasource"] for row in part}
        assert all(prompt.text.startswith(prompt.question) and "<answer>" in prompt.text for prompt in prompts)
    return found


def sizes(found: dict[str, Rows]) -> dict[str, int]:
    return {split: len(rows) for split, rows in found.items()}


# ── question and answer: Natural Reasoning, GeneralThoughts, WebInstruct ──

QA = {
    "natural_reasoning": ("question", "reference_answer"),
    "general_thoughts": ("question", "reference_answer"),
    "webinstruct": ("question", "answer"),
}


def questions(name: str, count: int, **more: Any) -> Rows:
    question, answer = QA[name]
    return [{question: f"Why is number {n} odd?", answer: f"Because of reason {n}.", **more} for n in range(count)]


@pytest.mark.parametrize("name", QA)
def test_sampled_sets_have_the_published_sizes(tmp_path: Path, name: str) -> None:
    source = write_jsonl(tmp_path / "full.jsonl", questions(name, 4100))
    prepared = run(name, source, tmp_path / "out")
    assert sizes(check(prepared)) == {"train": 2000, "validation": 1000, "test": 1000}
    assert prepared.card["dropped"] == {"not drawn": 100}
    assert {row["datasource"] for row in every(tmp_path / "out")} == {name}


@pytest.mark.parametrize("name", QA)
def test_trivial_empty_duplicate_and_conflicting_rows_are_dropped_with_their_reason(tmp_path: Path, name: str) -> None:
    question, answer = QA[name]
    rows = questions(name, 40)
    rows += [{question: "Is it?", answer: "Yes."}, {question: "How many?", answer: "\\boxed{42}"}]
    rows += [{question: " ", answer: "a text of words"}, {question: "Who?", answer: None}]
    rows += [rows[0], {question: "why is  number 1 ODD?", answer: "because of reason 1."}]
    rows += [{question: "Who was it?", answer: "It was Ann."}, {question: "Who was it?", answer: "It was Bob."}]
    prepared = run(name, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out")
    check(prepared)
    assert prepared.card["dropped"] == {
        "trivial reference": 2,
        "duplicate": 2,
        "prompt again, with a conflicting reference": 2,
        "empty prompt": 1,
        "empty reference": 1,
    }
    kept_all = run(name, tmp_path / "rows.jsonl", tmp_path / "all", "--drop_trivial=false")
    assert kept_all.card["kept"] == prepared.card["kept"] + 2


def test_the_publisher_s_test_split_is_not_drawn_from(tmp_path: Path) -> None:
    rows = questions("webinstruct", 30, answer_type="String", category="Physics", difficulty="Senior High School", id=7)
    write_parquet(tmp_path / "in" / "train-00000-of-00002.parquet", rows[:10])
    write_parquet(tmp_path / "in" / "train-00001-of-00002.parquet", rows[10:20])
    write_parquet(tmp_path / "in" / "test-00000-of-00001.parquet", rows[20:])
    prepared = run("webinstruct", tmp_path / "in", tmp_path / "out")
    check(prepared)
    assert prepared.card["dropped"] == {"published for test": 10}
    assert prepared.card["files"] == {
        "test-00000-of-00001": 10, "train-00000-of-00002": 10, "train-00001-of-00002": 10
    }  # fmt: skip
    meta = {"answer_type": "String", "category": "Physics", "difficulty": "Senior High School"}
    assert all(row["meta"] == meta for row in every(tmp_path / "out"))


@pytest.mark.parametrize("name", ["general_thoughts", "webinstruct"])
def test_a_bare_letter_becomes_letter_and_content(tmp_path: Path, name: str) -> None:
    question, answer = QA[name]
    rows = questions(name, 3)
    rows.append({question: "Demand is\na) elastic\nb) not elastic at all\n", answer: "B"})
    prepared = run(name, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out")
    check(prepared)
    assert "B. not elastic at all" in {row["reference"] for row in every(tmp_path / "out")}


# ── ToMBench ──


def tom_row(n: int, answer: str = "B", **changed: Any) -> dict[str, Any]:
    chinese = {"故事": f"故事{n // 3}", "问题": f"问题{n}", **{f"选项{letter}": "甲" for letter in "ABCD"}}
    english = {"STORY": f"Story {n // 3}.", "QUESTION": f"Question {n}?"}
    options = {f"OPTION-{letter}": f"choice {letter}{n}" for letter in "ABCD"}
    row = {"能力\nABILITY": "Belief: x", "序号\nINDEX": n, **chinese, **english, **options, "答案\nANSWER": answer}
    return row | changed


def test_tombench_has_the_published_sizes_clusters_and_its_authors_wish(tmp_path: Path) -> None:
    rows = [tom_row(n, "ABCD"[n % 4]) for n in range(2860)]
    write_jsonl(tmp_path / "in" / "False Belief Task.jsonl", rows[:600])
    write_jsonl(tmp_path / "in" / "Hinting Task Test.jsonl", rows[600:])  # "Test" here is no split
    prepared = run("tombench", tmp_path / "in", tmp_path / "out")
    found = check(prepared)
    assert sizes(found) == {"train": 1432, "validation": 571, "test": 857}
    assert any("never trained on" in note for note in prepared.notes) and "never trained on" in prepared.card["caution"]
    clusters: dict[str, set[str]] = {}
    for row in every(tmp_path / "out"):
        number = re.search(r"Story (\d+)\.", row["prompt"])
        assert number and row["meta"]["task"] in ("False Belief Task", "Hinting Task Test")
        clusters.setdefault(row["meta"]["cluster"], set()).add(number[1])
    assert all(len(stories) == 1 for stories in clusters.values()) and len(clusters) == 954  # 2860 / 3, up
    several = {row["meta"]["cluster"] for row in found["train"]} & {row["meta"]["cluster"] for row in found["test"]}
    assert prepared.card["clusters"]["in_several_splits"] >= len(several) > 0


def test_tombench_s_stories_can_stay_in_one_split(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "task.jsonl", [tom_row(n, "A") for n in range(2859)])
    prepared = run("tombench", source, tmp_path / "out", "--keep_clusters")
    found = check(prepared)
    assert prepared.card["clusters"] == {"all": 953, "in_several_splits": 0}
    stories = [{row["meta"]["cluster"] for row in rows} for rows in found.values()]
    assert sum(map(len, stories)) == len(set.union(*stories)) == 953
    published = {"train": 1432, "validation": 571, "test": 857}
    assert all(abs(len(rows) - published[split]) <= 3 for split, rows in found.items())
    assert any("Fewer rows are left" in note for note in prepared.notes)  # 2859 of 2860


def test_keeping_clusters_without_any_effect_is_refused(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", questions("webinstruct", 9))
    assert "no rows share a passage" in problem("webinstruct", file, tmp_path / "out", "--keep_clusters")
    write_jsonl(tmp_path / "in" / "dev.jsonl", [story(1)])
    assert "has splits of its own" in problem("ss_gen", tmp_path / "in", tmp_path / "out", "--keep_clusters")


def test_tombench_without_a_training_split_gives_no_warning(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "task.jsonl", [tom_row(n) for n in range(9)])
    prepared = run("tombench", source, tmp_path / "out", "--sizes={test: 1.0}")
    assert sizes(check(prepared)) == {"test": 9} and prepared.notes == [] and "caution" not in prepared.card


def test_the_faults_of_tombench_s_options_do_not_come_back(tmp_path: Path) -> None:
    two = {"OPTION-C": math.nan, "OPTION-D": math.nan}
    lettered = {"OPTION-A": "A. No", "OPTION-B": "B. B. Yes", "OPTION-C": "(c) A dog", "OPTION-D": "D. choice D3"}
    rows = [
        tom_row(0, "A. ", **two),
        tom_row(3, "B", **lettered),
        tom_row(6, "C", **two),
        tom_row(9, "X"),
        tom_row(12, "A", QUESTION="nan"),
    ]
    prepared = run("tombench", write_jsonl(tmp_path / "t.jsonl", rows), tmp_path / "out", "--sizes={test: 1.0}")
    first, second = sorted(check(prepared)["test"], key=lambda row: row["prompt"])
    assert first["prompt"] == "Story 0.\n\nQuestion 0?\n\nOptions:\nA. choice A0\nB. choice B0"
    assert first["reference"] == "A. choice A0"
    assert second["prompt"].endswith("A. No\nB. Yes\nC. A dog\nD. choice D3") and second["reference"] == "B. Yes"
    assert prepared.card["dropped"] == {
        "empty prompt": 1, "label is none of the options": 1, "the right option is empty": 1
    }  # fmt: skip


# ── EmoBench ──


def ea_row(n: int, language: str = "en", **changed: Any) -> dict[str, Any]:
    row = {
        "qid": str(n),
        "language": language,
        "category": "Personal-Self",
        "question type": ["Action", "Response"][n % 2],
    }
    row |= {
        "scenario": f"Scenario {n}.",
        "subject": "I",
        "choices": [f"do {k}{n}" for k in "abcd"],
        "label": f"do c{n}",
    }
    return row | changed


def eu_row(n: int, **changed: Any) -> dict[str, Any]:
    row = {"qid": str(n), "language": "en", "coarse_category": "complex_emotions", "finegrained_category": "mixture"}
    row |= {"scenario": f"Event {n}.", "subject": "Ann", "emotion_choices": ["Joy", "Fear", "Joy & Fear"]}
    row |= {"emotion_label": "Joy & Fear", "cause_choices": [f"cause {k}" for k in range(7)], "cause_label": "cause 6"}
    return row | changed


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_emobench_has_the_published_sizes_in_english(tmp_path: Path, suffix: str) -> None:
    ea = [ea_row(n) for n in range(200)] + [ea_row(n, "zh", scenario=f"场景{n}") for n in range(200)]
    for name, rows in (("EA", ea), ("EU", [eu_row(n) for n in range(200)])):
        file = write_jsonl(tmp_path / "in" / "data" / f"{name}.{suffix}", rows)
        if suffix == "json":
            file.write_text(json.dumps(rows), encoding="utf-8")
    prepared = run("emobench", tmp_path / "in", tmp_path / "out")
    assert sizes(check(prepared)) == {"train": 272, "test": 128}
    assert prepared.card["dropped"] == {"not English": 200} and prepared.card["kept"] == 400


def test_emobench_asks_for_an_action_a_response_and_an_emotion_with_its_cause(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "EA.jsonl", [ea_row(0), ea_row(1), ea_row(2, label="nothing of these")])
    write_jsonl(tmp_path / "in" / "EU.jsonl", [eu_row(0)])
    prepared = run("emobench", tmp_path / "in", tmp_path / "out", "--sizes={test: 1.0}")
    rows = {row["prompt"].split("\n")[0]: row for row in check(prepared)["test"]}
    assert rows["Scenario 0."]["prompt"] == (
        "Scenario 0.\n\nWhat is the most effective thing that I could do in this situation?\n\n"
        "Options:\nA. do a0\nB. do b0\nC. do c0\nD. do d0"
    )
    assert "response that I could give" in rows["Scenario 1."]["prompt"]
    assert rows["Scenario 1."]["reference"] == "C. do c1"
    assert rows["Event 0."]["reference"] == "Emotion: C. Joy & Fear\nCause: G. cause 6"
    assert "Which emotion would Ann feel in the end, and why?" in rows["Event 0."]["prompt"]
    assert "\n\nEmotions:\nA. Joy\nB. Fear\nC. Joy & Fear\n\nCauses:\nA. cause 0\n" in rows["Event 0."]["prompt"]
    assert prepared.card["dropped"] == {"label is none of the options": 1}


def test_emobench_s_clusters_are_its_scenarios(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "EA.jsonl", [ea_row(0), ea_row(1), ea_row(2, scenario="Scenario 0.", subject="Ann")])
    write_jsonl(tmp_path / "in" / "EU.jsonl", [eu_row(0, scenario="Scenario 1.")])
    prepared = run("emobench", tmp_path / "in", tmp_path / "out", "--sizes={test: 1.0}")
    for row in check(prepared)["test"]:
        scenario = row["prompt"].partition("\n")[0].lower()
        assert row["meta"]["cluster"] == "emobench-" + hashlib.sha256(scenario.encode()).hexdigest()[:12]
    assert prepared.card["kept"] == 4 and prepared.card["clusters"] == {"all": 2, "in_several_splits": 0}


def test_emobench_as_it_was_published_first(tmp_path: Path) -> None:
    def both(english: Any) -> dict[str, Any]:
        return {"en": english, "zh": "中文"}

    ea = {"Problem": "Social", "Relationship": "Personal", "Question": both("Action"), "Scenario": both("At work.")}
    ea |= {"Subject": both("Ann"), "Choices": both(["go", "stay"]), "Score": ["1", "0"], "Label": 1}
    emotion = {"Choices": both(["Joy", "Fear"]), "Label": both("Fear")}
    cause = {"Choices": both(["the dog", "the cat"]), "Label": both("the cat")}
    eu = {
        "Category": "mixture",
        "Scenario": both("At home."),
        "Subject": both("Bob"),
        "Emotion": emotion,
        "Cause": cause,
    }
    for name, row in (("EA", ea), ("EU", eu)):
        folder = tmp_path / "in" / "data" / name
        folder.mkdir(parents=True)
        for file in ("data.json", "data_permute_1.json"):
            (folder / file).write_text(json.dumps([row]), encoding="utf-8")
        write_jsonl(folder / "Results" / "gpt" / "gpt-en.jsonl", [{"answer": "a"}])
    (tmp_path / "in" / "data" / "dicts.json").write_text("[]", encoding="utf-8")
    prepared = run("emobench", tmp_path / "in", tmp_path / "out", "--sizes={test: 1.0}")
    references = {row["reference"] for row in check(prepared)["test"]}
    assert references == {"B. stay", "Emotion: B. Fear\nCause: B. the cat"}
    assert prepared.card["files"] == {"data/EA/data": 1, "data/EU/data": 1}


# ── SS-GEN ──


def story(n: int, **changed: Any) -> dict[str, Any]:
    row = {"id": n, "chapter": "friends", "explanation": "about friends.", "title": f"Title {n}"}
    return row | {"story_content": f"I like friend {n}."} | changed


def test_ss_gen_keeps_the_published_splits_and_no_title_twice(tmp_path: Path) -> None:
    stem = "refined_gpt4story_all_5085_from_gpt4titles_"
    write_jsonl(tmp_path / "in" / f"{stem}sft.jsonl", [story(n) for n in range(12)])
    write_jsonl(tmp_path / "in" / f"{stem}dev.jsonl", [story(n) for n in range(20, 25)])
    again = [story(0), story(1, story_content="Another story."), story(40), story(40, story_content="A third.")]
    write_jsonl(tmp_path / "in" / f"{stem}test.jsonl", again)
    prepared = run("ss_gen", tmp_path / "in", tmp_path / "out")
    found = check(prepared)
    assert sizes(found) == {"train": 10, "validation": 5, "test": 3}
    assert prepared.card["dropped"] == {"prompt is in another split": 2, "prompt again, with another reference": 1}
    (row,) = (row for row in found["train"] if row["meta"]["source_id"] == "5")
    assert row["reference"] == "I like friend 5." and row["meta"]["chapter"] == "friends"
    assert all(
        part in row["prompt"] for part in ("Social Story", "Title: Title 5\n", "Chapter: friends\n", "about friends.")
    )
    fewer = run("ss_gen", tmp_path / "in", tmp_path / "few", "--sizes={train: 4, test: 2}")
    assert sizes(check(fewer)) == {"train": 4, "test": 2}


# ── OPUS Books ──


def pair(n: int, one: str = "en", other: str = "fr") -> dict[str, Any]:
    return {"id": str(n), "translation": {one: f"{one} text {n}", other: f"{other} text {n}"}}


def test_opus_books_asks_each_pair_in_one_direction(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "en-fr" / "train-00000-of-00001.parquet", [pair(n) for n in range(4200)])
    prepared = run("opus_books", tmp_path / "in", tmp_path / "out")
    assert sizes(check(prepared)) == {"train": 2000, "validation": 1000, "test": 1000}
    rows = every(tmp_path / "out")
    to_french = [row for row in rows if row["meta"] == {"from": "en", "to": "fr"}]
    assert 1700 < len(to_french) < 2300
    number = to_french[0]["reference"].removeprefix("fr text ")
    assert to_french[0]["prompt"] == f"Translate the following text from English to French:\n\nen text {number}"
    assert len({row["prompt"].rpartition(" ")[2] for row in rows}) == 4000  # no pair twice


def test_opus_books_takes_the_languages_that_are_asked_for(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "en-fr" / "train.parquet", [pair(n) for n in range(20)])
    write_parquet(tmp_path / "in" / "de-en" / "train.parquet", [pair(n, "de", "en") for n in range(20)])
    prepared = run("opus_books", tmp_path / "in", tmp_path / "out", "--languages=fr-en", "--sizes={test: 1.0}")
    assert {(row["meta"]["from"], row["meta"]["to"]) for row in check(prepared)["test"]} == {("fr", "en")}
    assert prepared.card["dropped"] == {"language pair not asked for": 20}
    assert prepared.card["options"] == {"sizes": {"test": 1.0}, "opus_books.languages": "fr-en"}


def test_opus_books_asks_a_pair_that_differs_in_white_space_and_case_in_the_same_direction(tmp_path: Path) -> None:
    """Else its prompt would be the reference of the other, which can be in another split."""
    rows = []
    for n in range(200):
        rows.append({"id": "0", "translation": {"en": f"He said number {n}.", "fr": f"Il a dit le nombre {n}."}})
        rows.append({"id": "1", "translation": {"en": f"He  said NUMBER {n}. ", "fr": f"Il a dit\nle nombre {n}."}})
    source = write_jsonl(tmp_path / "books.jsonl", rows)
    prepared = run("opus_books", source, tmp_path / "out", "--sizes={train: 0.5, test: 0.5}")
    check(prepared)
    assert prepared.card["kept"] == 200 and prepared.card["dropped"].keys() <= {
        "duplicate", "prompt again, with another reference"
    }  # fmt: skip
    assert {row["meta"]["from"] for row in every(tmp_path / "out")} == {"en", "fr"}


def test_opus_books_drops_what_is_no_translation(tmp_path: Path) -> None:
    odd = [{"en": "Jane Eyre", "fr": "JANE EYRE"}, {"en": "", "fr": ""}, {"en": "One only."}, {"xx": "a", "fr": "b"}]
    rows = [{"id": "0", "translation": texts} for texts in odd] + [pair(1)]
    prepared = run("opus_books", write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", "--sizes={test: 1.0}")
    check(prepared)
    assert prepared.card["dropped"] == {
        "language pair not asked for": 2, "empty prompt": 1, "translation is the text itself": 1
    }  # fmt: skip


# ── NOVEReason ──

FORMAT = (
    "\n\nAnswer the question and return in the following format:\n\n<think>\n...\n</think>\n\n<answer>\n...\n</answer>"
)


def mixture(n: int, **changed: Any) -> dict[str, Any]:
    row = {"question": f"What is {n}?", "reference": f"It is {n}.", "prompt": f"\nQuestion: What is {n}?{FORMAT}"}
    row |= {"id": str(n), "options": "", "subject": "number", "type": "free", "source_dataset": "numbers", "label": ""}
    return row | changed


def test_novereason_keeps_its_splits_and_its_faults_are_mended(tmp_path: Path) -> None:
    options = "Question: Which?\n\nOptions:\nA. A. Yes\nB. No\nC. nan\nD. nan"
    faulty = [
        mixture(100, prompt=options + FORMAT, reference="A. A. Yes", source_dataset="ToMBench"),
        mixture(101, prompt="Question: Who?" + FORMAT, reference="C. nan"),
    ]
    write_parquet(tmp_path / "in" / "train-00000-of-00001.parquet", [*(mixture(n) for n in range(10)), *faulty])
    write_parquet(tmp_path / "in" / "test-00000-of-00001.parquet", [mixture(n) for n in range(8, 14)])
    prepared = run("novereason", tmp_path / "in", tmp_path / "out")
    found = check(prepared)
    assert sizes(found) == {"train": 9, "test": 6}
    assert prepared.card["dropped"] == {"prompt is in another split": 2, "the right option is empty": 1}
    (row,) = (row for row in found["train"] if row["datasource"] == "ToMBench")
    assert (row["prompt"], row["reference"]) == ("Which?\n\nOptions:\nA. Yes\nB. No", "A. Yes")
    assert found["test"][0]["meta"]["subject"] == "number" and found["test"][0]["prompt"].startswith("What is ")


EU_OPTIONS = "Emotion Options:\nA: A. Joy\nB: nan\nC: Fear\n\nCause Options:\nA: the dog\nB: B: the cat"
LETTERED = "Which?\n\nOptions:\nA. nan\nB. Yes\nC. No\nD. nan\nE. Both"


@pytest.mark.parametrize(
    ("prompt", "reference", "expected"),
    [
        (LETTERED, "E. Both", "C. Both"),
        (LETTERED, "E", "C. Both"),
        (LETTERED, "(c)", "B. No"),
        (LETTERED, "B.", "A. Yes"),
        (LETTERED, "B. B. Yes", "A. Yes"),
        (LETTERED, "Both of them", "Both of them"),
        (LETTERED, "Z. nothing", "Z. nothing"),
        (LETTERED, "D", None),
        (LETTERED, "A.", None),
        (LETTERED, "A. nan", None),
        (EU_OPTIONS, "Emotion: C: C: Fear, Cause: B: B: the cat", "Emotion: B: Fear, Cause: B: the cat"),
        (EU_OPTIONS, "Emotion: A: A. Joy, Cause: A: the dog", "Emotion: A: Joy, Cause: A: the dog"),
        (EU_OPTIONS, "Emotion: B: nan, Cause: A: the dog", None),
        (EU_OPTIONS, "B", "B"),  # of which list?
        ("Who wrote it?", "A. A. Milne", "A. A. Milne"),
        ("Name it.\nA. A. Milne wrote it.", "Pooh", "Pooh"),
    ],
)
def test_novereason_s_options_close_up_and_the_reference_follows(
    tmp_path: Path, prompt: str, reference: str, expected: str | None
) -> None:
    rows = [mixture(0), mixture(1, prompt=f"Question: {prompt}{FORMAT}", reference=reference)]
    prepared = run("novereason", write_jsonl(tmp_path / "train.jsonl", rows), tmp_path / "out")
    mended = {
        LETTERED: "Which?\n\nOptions:\nA. Yes\nB. No\nC. Both",
        EU_OPTIONS: "Emotion Options:\nA: Joy\nB: Fear\n\nCause Options:\nA: the dog\nB: the cat",
    }.get(prompt, prompt)
    found = {row["prompt"]: row["reference"] for row in read(prepared.folder)["train"]}
    assert found == {"What is 0?": "It is 0."} | ({mended: expected} if expected else {})
    assert prepared.card.get("dropped", {}) == ({} if expected else {"the right option is empty": 1})


def test_novereason_drops_a_question_with_one_option_left(tmp_path: Path) -> None:
    rows = [mixture(0), mixture(1, prompt="Question: Which?\n\nA. Yes\nB. nan" + FORMAT, reference="A. Yes")]
    prepared = run("novereason", write_jsonl(tmp_path / "train.jsonl", rows), tmp_path / "out")
    assert prepared.card["dropped"] == {"fewer than two options": 1}


# ── a data set of one's own ──


def own(count: int, **more: Any) -> Rows:
    return [
        {"q": f"q{n}", "a": f"a{n}", "key": f"k{n}", "kind": f"s{n % 2}", "page": f"p{n // 4}", **more}
        for n in range(count)
    ]


COLUMNS = ("--input_key=q", "--label_key=a")


def test_custom_rows_by_column_names(tmp_path: Path) -> None:
    prepared = run(
        "custom", write_jsonl(tmp_path / "in.jsonl", own(20, note="n")), tmp_path / "out", *COLUMNS, "--id_key=key",
        "--datasource_key=kind", "--cluster_key=page", "--meta_keys=note", "--sizes={train: 0.8, test: 0.2}",
        "--licence=CC0",
    )  # fmt: skip
    found = check(prepared)
    assert sizes(found) == {"train": 16, "test": 4} and prepared.card["licence"] == "CC0"
    for row in every(tmp_path / "out"):
        n = int(row["prompt"][1:])
        assert (row["id"], row["reference"], row["datasource"]) == (f"k{n}", f"a{n}", f"s{n % 2}")
        assert row["meta"]["note"] == "n"
    assert prepared.card["clusters"]["all"] == 5


@pytest.mark.parametrize(
    ("values", "label", "option"),
    [
        ({"c": ["x", "y", "z"]}, "y", "--choices_key=c"),
        ({"c": ["x", "y", "z"]}, "B", "--choices_key=c"),
        ({"c": ["x", "y", "z"]}, 1, "--choices_key=c"),
        ({"c": '["x", "y", "z"]'}, "1", "--choices_key=c"),
        ({"c": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}}, "B", "--choices_key=c"),
        ({"c": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}}, "2", "--choices_key=c"),
        ({"c": {"text": ["x", "y", "z"], "label": [1, 2, 3]}}, 2, "--choices_key=c"),
        ({"c": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}}, "y", "--choices_key=c"),
        ({"c": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}}, 1, "--choices_key=c"),
        ({"c1": "x", "c2": "y", "c3": "z"}, "b", "--choices_key=c1,c2,c3"),
    ],
)
def test_custom_choices_become_free_form(tmp_path: Path, values: dict[str, Any], label: Any, option: str) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"q": "Which?", "a": label, **values}])
    (row,) = check(run("custom", source, tmp_path / "out", *COLUMNS, option, "--sizes={test: 1.0}"))["test"]
    assert (row["prompt"], row["reference"]) == ("Which?\n\nOptions:\nA. x\nB. y\nC. z", "B. y")


def test_a_number_in_a_custom_row_is_a_place_and_a_digit_that_fits_two_options_is_ambiguous(tmp_path: Path) -> None:
    """As in MMLU, where `answer` is the place from 0 and the choices may be numbers."""
    numbers = ["2", "3", "1", "12"]
    rows = [{"q": "As a number?", "a": 1, "c": numbers}]
    file = write_parquet(tmp_path / "mmlu.parquet", rows)
    (row,) = check(run("custom", file, tmp_path / "one", *COLUMNS, "--choices_key=c", "--sizes={test: 1.0}"))["test"]
    assert row["reference"] == "B. 3"
    texts = [{"q": "As a text?", "a": "1", "c": numbers}, {"q": "In no other way?", "a": "12", "c": numbers}]
    file = write_jsonl(tmp_path / "texts.jsonl", texts)
    prepared = run("custom", file, tmp_path / "two", *COLUMNS, "--choices_key=c", "--sizes={test: 1.0}")
    assert [row["reference"] for row in check(prepared)["test"]] == ["D. 12"]
    assert prepared.card["dropped"] == {"label names several options": 1}


def test_labels_that_are_numbers_are_no_places(tmp_path: Path) -> None:
    """As in ARC, whose labels are 1 to 4 in some rows."""
    choices = {"text": ["4", "x", "y", "z"], "label": ["1", "2", "3", "4"]}
    rows = [{"q": f"q{answer}", "a": answer, "c": choices} for answer in ("4", "0", "5")]
    file = write_jsonl(tmp_path / "arc.jsonl", rows)
    prepared = run("custom", file, tmp_path / "out", *COLUMNS, "--choices_key=c", "--sizes={test: 1.0}")
    (row,) = check(prepared)["test"]
    assert row["reference"] == "D. z" and prepared.card["dropped"] == {"label is none of the options": 2}
    file = write_jsonl(tmp_path / "odd.jsonl", [{"q": "q", "a": "1", "c": {"text": ["x", "y"], "label": ["1"]}}])
    options = (*COLUMNS, "--choices_key=c", "--sizes={test: 1.0}")
    assert "row 1 has 2 choices and 1 labels" in problem("custom", file, tmp_path / "odd", *options)


# ── meta ──


def test_what_json_has_no_form_for_is_written_as_a_text_or_left_out(tmp_path: Path) -> None:
    when = datetime(2020, 1, 2, 3, 4, 5)
    row = {"q": "q", "a": "a", "when": when, "day": when.date(), "cost": Decimal("1.50"), "level": math.nan}
    row |= {"parts": [{"day": when.date(), "level": math.nan}]}
    file = write_parquet(tmp_path / "in.parquet", [row])
    keys = "--meta_keys=when,day,cost,level,parts"
    (written,) = check(run("custom", file, tmp_path / "out", *COLUMNS, keys, "--sizes={test: 1.0}"))["test"]
    assert written["meta"] == {
        "when": "2020-01-02T03:04:05",
        "day": "2020-01-02",
        "cost": "1.50",
        "parts": [{"day": "2020-01-02", "level": None}],
    }
    assert "NaN" not in (tmp_path / "out" / "test.jsonl").read_text()


@pytest.mark.parametrize(
    ("column", "value", "part"),
    [
        ("q", "half \ud83d", "row 2: `q` has half a character (\\ud83d) at place 6"),
        ("a", "\ude00", "row 2: `a` has half a character (\\ude00) at place 1"),
        ("note", {"deep": ["\ud83d"]}, "row 2: `note` has half a character"),
        ("note", math.inf, "row 2: `note` is a float (inf), which JSON cannot hold"),
    ],
)
def test_a_value_that_cannot_be_written_is_named_with_its_row(
    tmp_path: Path, column: str, value: Any, part: str
) -> None:
    rows = [*own(1, note="n"), own(2, note="n")[1] | {column: value}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = problem(
        "custom", tmp_path / "in.jsonl", tmp_path / "out", *COLUMNS, "--meta_keys=note", "--sizes={test: 1.0}"
    )
    assert part in found and "\n" not in found and not (tmp_path / "out").exists()


def test_bytes_cannot_be_kept(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "in.parquet", own(1, image=b"png"))
    found = problem("custom", file, tmp_path / "out", *COLUMNS, "--meta_keys=image", "--sizes={test: 1.0}")
    assert "row 1: `image` is a bytes" in found


# ── the sizes ──


def test_a_size_without_a_point_is_rows_and_one_with_a_point_a_share(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", own(8))
    for given, there in (
        ("{test: 1}", {"test": 1}),
        ("{test: 1.0}", {"test": 8}),
        ("{train: 1, test: 1}", {"train": 1, "test": 1}),
        ("{train: 0.5, test: 0}", {"train": 4}),
    ):
        prepared = run("custom", file, tmp_path / "out", *COLUMNS, f"--sizes={given}", "--overwrite")
        assert sizes(check(prepared)) == there


# ── splits of the source ──


@pytest.mark.parametrize("by", ["file", "column"])
def test_custom_splits_of_the_source_are_kept(tmp_path: Path, by: str) -> None:
    rows = own(12)
    if by == "file":
        write_jsonl(tmp_path / "in" / "train.jsonl", rows[:9])
        write_jsonl(tmp_path / "in" / "val.jsonl", rows[9:])
    else:
        named = [row | {"split": "train" if n < 9 else "dev"} for n, row in enumerate(rows)]
        write_jsonl(tmp_path / "in" / "rows.jsonl", named)
    found = check(run("custom", tmp_path / "in", tmp_path / "out", *COLUMNS))
    assert sizes(found) == {"train": 9, "validation": 3}
    assert {row["prompt"] for row in found["validation"]} == {"q9", "q10", "q11"}


def test_a_source_that_is_only_a_training_split_can_be_split(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "train.jsonl", own(10))
    found = check(run("custom", source, tmp_path / "out", *COLUMNS, "--sizes={train: 0.7, test: 0.3}"))
    assert sizes(found) == {"train": 7, "test": 3}
    assert sizes(check(run("custom", source, tmp_path / "whole", *COLUMNS))) == {"train": 10}


def test_custom_reads_csv_parquet_json_and_saved_data_sets_alike(tmp_path: Path) -> None:
    rows = own(20)
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_parquet(tmp_path / "a.parquet", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    found = []
    for name in ("a.jsonl", "a.parquet", "a.json", "a.csv", "saved"):
        out = tmp_path / f"out_{name}"
        run("custom", tmp_path / name, out, *COLUMNS, "--sizes={train: 12, test: 8}")
        found.append(read(out))
    assert all(each == found[0] for each in found)


# ── the hub, without a network ──


class Hub:
    """What prepare asks of `datasets`, for data sets that are in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, there: dict[str, dict[str, Any]]) -> None:
        self.asked: list[tuple[str, str]] = []
        self.there = there
        monkeypatch.setattr(datasets, "get_dataset_config_names", self.names)
        monkeypatch.setattr(datasets, "load_dataset", self.load)

    def names(self, name: str) -> list[str]:
        if name not in self.there:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        return list(self.there[name])

    def load(self, name: str, subset: str) -> Any:
        self.asked.append((name, subset))
        return self.there[name][subset]


def on_hub(rows: Rows, split: str = "train") -> Any:
    return datasets.DatasetDict({split: datasets.Dataset.from_list(rows)})


def test_a_data_set_is_found_on_the_hub_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = questions("natural_reasoning", 8, responses=[{"response": "long"}])
    hub = Hub(monkeypatch, {"facebook/natural_reasoning": {"default": on_hub(rows)}})
    prepared = run("natural_reasoning", None, tmp_path / "out")
    assert hub.asked == [("facebook/natural_reasoning", "default")]
    assert sizes(check(prepared)) == {"train": 4, "validation": 2, "test": 2}
    assert prepared.card["source"] == "facebook/natural_reasoning"
    assert prepared.card["files"] == {"facebook/natural_reasoning/train": 8}


def test_ss_gen_is_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = datasets.DatasetDict(
        {name: datasets.Dataset.from_list([story(n) for n in numbers])
         for name, numbers in (("train", range(4)), ("validation", range(4, 6)), ("test", range(6, 9)))}
    )  # fmt: skip
    hub = Hub(monkeypatch, {"FMiMiY/SS-GEN": {"default": there}})
    assert sizes(check(run("ss_gen", None, tmp_path / "out"))) == {"train": 4, "validation": 2, "test": 3}
    assert hub.asked == [("FMiMiY/SS-GEN", "default")]


def test_opus_books_downloads_only_the_pairs_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {name: on_hub([pair(n, *name.split("-")) for n in range(4)]) for name in ("de-en", "en-fr", "en-it")}
    hub = Hub(monkeypatch, {"Helsinki-NLP/opus_books": there})
    check(run("opus_books", None, tmp_path / "out", "--languages=fr-en,en-it", "--sizes={train: 1.0}"))
    assert [subset for _, subset in hub.asked] == ["en-fr", "en-it"]


def test_a_hub_set_with_several_configurations_asks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, {"me/set": {"small": on_hub(own(4)), "large": on_hub(own(8))}})
    sources = ("custom", "me/set", tmp_path / "out", *COLUMNS, "--sizes={test: 1.0}")
    with pytest.raises(ConfigError, match=r"several configurations \(small, large\).*--subset"):
        run(*sources)
    with pytest.raises(DataError, match="no configuration tiny; it has small, large"):
        run(*sources, "--subset=tiny")
    assert sizes(check(run(*sources, "--subset=large"))) == {"test": 8} and hub.asked == [("me/set", "large")]


def test_a_hub_set_with_other_columns_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, {"me/set": {"default": on_hub(own(4))}})
    with pytest.raises(DataError, match=r"has no column `question`, `answer`; it has `q`, `a`, `key`"):
        run("webinstruct", "me/set", tmp_path / "out")


def test_a_name_that_is_not_on_the_hub_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, {})
    with pytest.raises(DataError, match=r"no/such is no file or folder here and cannot be loaded from the hub"):
        run("webinstruct", "no/such", tmp_path / "out")


# ── what holds for all ──


def test_the_same_rows_in_other_files_and_another_order_give_the_same_files(tmp_path: Path) -> None:
    rows = own(60) + own(10) + [{"q": "q3", "a": "something else"}]
    write_jsonl(tmp_path / "one" / "a.jsonl", rows)
    random.Random(1).shuffle(rows)
    write_jsonl(tmp_path / "two" / "x.jsonl", rows[:20])
    write_parquet(tmp_path / "two" / "deep" / "b.parquet", rows[20:])
    cards = [
        run("custom", tmp_path / name, tmp_path / f"out_{name}", *COLUMNS, "--sizes={train: 20, test: 10}", *seed).card
        for name, *seed in (("one",), ("two",))
    ]
    assert cards[0]["splits"] == cards[1]["splits"] and cards[0]["dropped"] == cards[1]["dropped"]
    other = run("custom", tmp_path / "one", tmp_path / "seed", *COLUMNS, "--sizes={train: 20, test: 10}", "--seed=7")
    assert other.card["splits"] != cards[0]["splits"]


def test_every_name_has_a_recipe_with_a_licence_and_the_hub_ids_are_those_of_the_issue() -> None:
    built = {
        name: make(load_config(PrepareConfig, ["--dataset", name, "--source", "x"])) for name, make in RECIPES.items()
    }
    assert set(built) == {
        "natural_reasoning", "general_thoughts", "webinstruct", "ss_gen", "tombench", "emobench", "opus_books",
        "novereason", "custom",
    }  # fmt: skip
    assert all(recipe.licence for recipe in built.values())
    assert {name: recipe.hub for name, recipe in built.items() if recipe.hub and name != "emobench"} == {
        "natural_reasoning": "facebook/natural_reasoning",
        "general_thoughts": "RJT1990/GeneralThoughtArchive",
        "webinstruct": "TIGER-Lab/WebInstruct-verified",
        "opus_books": "Helsinki-NLP/opus_books",
        "novereason": "thinkwee/NOVEReason_2k",
        "ss_gen": "FMiMiY/SS-GEN",
    }


# ── the real rows ──


@needs_shared
@pytest.mark.parametrize(
    ("name", "folder", "counts", "dropped"),
    [
        ("emobench", "emobench", {"train": 109, "test": 51}, {"not English": 10}),  # 160 at 272 : 128
        ("tombench", "tombench", {"train": 85, "validation": 34, "test": 51}, {}),  # 170 at 1432 : 571 : 857
        ("ss_gen", "ss_gen", {"validation": 60, "test": 30}, {}),
        ("novereason", "nover_csv", {"train": 360, "validation": 50, "test": 120}, {}),
    ],
)
def test_the_real_rows(tmp_path: Path, name: str, folder: str, counts: dict[str, int], dropped: dict[str, int]) -> None:
    prepared = run(name, SHARED / folder, tmp_path / "out")
    assert sizes(check(prepared)) == counts
    assert prepared.card.get("dropped", {}) == dropped


@needs_shared
def test_each_real_label_of_emobench_is_the_content_of_its_letter(tmp_path: Path) -> None:
    raw = {}
    for name in ("EA", "EU"):
        for line in (SHARED / "emobench" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            parts = [row["label"]] if name == "EA" else [row["emotion_label"], row["cause_label"]]
            raw[name, row["qid"], row["scenario"]] = parts
    run("emobench", SHARED / "emobench", tmp_path / "out")
    rows = every(tmp_path / "out")
    assert len(rows) == 160
    for row in rows:
        parts = raw[row["meta"]["task"], row["meta"]["source_id"], row["prompt"].split("\n\n")[0]]
        lines = [line.removeprefix("Emotion: ").removeprefix("Cause: ") for line in row["reference"].split("\n")]
        assert [line.partition(". ")[2] for line in lines] == [part.strip() for part in parts]
        assert all(f"\n{line}\n" in row["prompt"] + "\n" for line in lines)


@needs_shared
def test_each_real_answer_of_tombench_is_the_option_of_its_letter(tmp_path: Path) -> None:
    raw = {}
    for file in (SHARED / "tombench").glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            letter = row["答案\nANSWER"].strip(". ")
            raw[row["STORY"].strip(), row["QUESTION"].strip(), row[f"OPTION-{letter}"].strip()] = letter
    run("tombench", SHARED / "tombench", tmp_path / "out")
    for row in every(tmp_path / "out"):
        head, _, options = row["prompt"].partition("\n\nOptions:\n")
        letter, _, content = row["reference"].partition(". ")
        story, _, question = head.rpartition("\n\n")
        assert raw[story, question, content] == letter and row["reference"] in options.split("\n")


@needs_shared
@pytest.mark.parametrize("name", ["natural_reasoning", "general_thoughts", "webinstruct", "opus_books"])
def test_real_questions_in_the_published_columns(tmp_path: Path, name: str) -> None:
    """The prepared CSVs of these sets, put back into the columns of the publication."""
    with (SHARED / "nover_csv" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["prompt"], row["reference"]) for row in csv.DictReader(file)]
    raw: Rows = []
    for prompt, reference in rows:
        text = prompt.partition("\n\nAnswer the question and return")[0].strip().removeprefix("Question: ")
        if name == "opus_books":
            head, _, text = text.partition(":\n\n")
            codes = {"English": "en", "French": "fr", "German": "de", "Italian": "it", "Russian": "ru", "Spanish": "es"}
            codes |= {"Dutch": "nl", "Portuguese": "pt", "Hungarian": "hu", "Finnish": "fi", "Swedish": "sv"}
            codes |= {"Norwegian": "no", "Polish": "pl", "Greek": "el", "Catalan": "ca", "Esperanto": "eo"}
            source, _, target = head.removeprefix("Translate the following text from ").partition(" to ")
            raw.append({"id": "1", "translation": {codes[source]: text, codes[target]: reference}})
        else:
            raw.append(dict(zip(QA[name], (text, reference), strict=True)))
    prepared = run(name, write_jsonl(tmp_path / "rows.jsonl", raw), tmp_path / "out")
    check(prepared)
    # Counted by eye: Yes, False, 13.02%, $22,338, currency ... and a letter whose option the question does not list.
    trivial = {"general_thoughts": 1, "webinstruct": 29}.get(name, 0)
    assert prepared.card.get("dropped", {}) == ({"trivial reference": trivial} if trivial else {})
    assert prepared.card["kept"] == 90 - trivial


# ── errors ──


def problem(*arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        run(*arguments)
    return str(caught.value)


def test_missing_columns_are_listed_before_anything_is_written(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", own(3))
    for file in (source, write_parquet(tmp_path / "in.parquet", own(3))):
        found = problem("webinstruct", file, tmp_path / "out")
        assert (
            all(part in found for part in ("`question`, `answer`", "`q`, `a`, `key`", "file in")) and "\n" not in found
        )
    found = problem("custom", source, tmp_path / "out", "--sizes={test: 1.0}", "--meta_keys=level")
    assert all(part in found for part in ("`prompt`, `reference`, `level`", "--input_key"))
    assert not (tmp_path / "out").exists()


def test_a_source_with_nothing_to_use_says_why(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"q": "", "a": "x"}, {"q": "p", "a": " "}, {"q": "r", "a": None}])
    found = problem("custom", source, tmp_path / "out", *COLUMNS, "--sizes={test: 1.0}")
    assert "none of 3 rows" in found and "2 empty reference; 1 empty prompt" in found
    write_jsonl(tmp_path / "none.jsonl", [])
    assert "none of 0 rows" in problem("webinstruct", tmp_path / "none.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("tombench", [], ["`source` is not set", "zhchen18/ToMBench"]),
        ("custom", [], ["`source` is not set"]),
        ("webinstruct", ["--languages=en-fr"], ["opus_books.languages has no effect", "webinstruct"]),
        ("webinstruct", ["--input_key=q"], ["custom.input_key has no effect"]),
        ("opus_books", ["--languages=en_fr"], ["en_fr is no direction"]),
        ("opus_books", ["--languages=en-en"], ["en-en is no direction"]),
        ("opus_books", ["--languages=en-xx"], ["no language xx"]),
        ("webinstruct", ["--sizes={dev: 3}"], ["no split dev", "train, validation, test"]),
        ("webinstruct", ["--sizes={train: 2.5}"], ["have a point, and sum to more than 1"]),
        ("webinstruct", ["--sizes={train: 1.0, test: 1.0}"], ["have a point, and sum to more than 1"]),
        ("webinstruct", ["--sizes={train: 0.8, test: 0.3}"], ["have a point, and sum to more than 1"]),
        ("webinstruct", ["--sizes={train: 2000, test: 0.2}"], ["mixes rows and shares"]),
        ("webinstruct", ["--sizes={test: true}"], ["--sizes.test", "no number of rows and no share"]),
        ("webinstruct", ["--sizes={test: few}"], ["--sizes.test", "few is no number of rows and no share"]),
        ("webinstruct", ["--sizes={test: .nan}"], ["--sizes.test", "nan is no number of rows and no share"]),
        ("webinstruct", ["--sizes={train: 0}"], ["names no rows"]),
        ("webinstruct", ["--sizes={train: -1, test: 5}"], ["names no rows"]),
        ("nonsense", [], ["dataset", "'natural_reasoning'"]),
    ],
)
def test_options_that_cannot_work(tmp_path: Path, name: str, options: list[str], parts: list[str]) -> None:
    found = problem(name, None, tmp_path / "out", *options)
    assert all(part in found for part in parts), found


def test_sources_that_cannot_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "there is no file or folder ./nothing" in problem("webinstruct", "./nothing", out)
    (tmp_path / "empty").mkdir()
    assert "has no file that can be used" in problem("webinstruct", tmp_path / "empty", out)
    write_jsonl(tmp_path / "emo" / "other.jsonl", own(1))
    assert "the 1 there are not of EmoBench" in problem("emobench", tmp_path / "emo", out)
    file = write_jsonl(tmp_path / "EA.jsonl", own(1))
    assert "neither `choices` (EA) nor `emotion_choices` (EU)" in problem("emobench", file, out)
    assert "`subset` has no effect" in problem("webinstruct", file, out, "--subset=x")
    (tmp_path / "bad.jsonl").write_text('{"question": "x"\n')
    assert "bad.jsonl, line 1 is not JSON" in problem("webinstruct", tmp_path / "bad.jsonl", out)
    file = write_jsonl(tmp_path / "list.jsonl", [{"question": ["x"], "answer": "y"}])
    assert "row 1: `question` is a list" in problem("webinstruct", file, out)


def test_splits_and_sizes_that_do_not_go_together(tmp_path: Path) -> None:
    out, rows = tmp_path / "out", own(4)
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert "has no splits of its own" in problem("custom", file, out, *COLUMNS)
    write_jsonl(tmp_path / "in" / "train.jsonl", rows)
    write_jsonl(tmp_path / "in" / "test.jsonl", own(8)[4:])
    assert "`sizes` are shares" in problem("custom", tmp_path / "in", out, *COLUMNS, "--sizes={train: 0.5}")
    file = write_jsonl(tmp_path / "some.jsonl", [*rows, {"q": "x", "a": "y", "split": "test"}])
    assert "4 of 5 usable rows name no split" in problem("custom", file, out, *COLUMNS)
    file = write_jsonl(tmp_path / "odd.jsonl", own(2, split="holdout"))
    assert "row 1: `split` is holdout" in problem("custom", file, out, *COLUMNS)


def test_ids_of_one_s_own_are_there_once(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", own(4))
    found = problem("custom", file, tmp_path / "out", *COLUMNS, "--id_key=kind", "--sizes={test: 1.0}")
    assert "2 ids are there more than once, the first s" in found


# ── the folder ──


def test_a_folder_with_files_is_refused_and_an_earlier_preparation_replaced_when_asked(tmp_path: Path) -> None:
    file, out = write_jsonl(tmp_path / "rows.jsonl", own(8)), tmp_path / "out"
    run("custom", file, out, *COLUMNS, "--sizes={train: 4, test: 4}")
    before = read(out)
    assert "has files already" in problem("custom", file, out, *COLUMNS, "--sizes={train: 8}")
    assert read(out) == before
    check(run("custom", file, out, *COLUMNS, "--sizes={train: 8, test: 0}", "--overwrite"))
    assert sizes(read(out)) == {"train": 8} and not (out / "test.jsonl").exists()
    (out / "notes.txt").write_text("mine")
    assert "notes.txt" in problem("custom", file, out, *COLUMNS, "--sizes={train: 4}", "--overwrite")
    assert (out / "notes.txt").read_text() == "mine" and sizes(read(out)) == {"train": 8}
    assert "is a file" in problem("custom", file, file, *COLUMNS, "--sizes={train: 4}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl"]


def test_a_folder_inside_the_source_is_refused(tmp_path: Path) -> None:
    """Else a second preparation would read the first as a part of its source."""
    write_jsonl(tmp_path / "rows.jsonl", own(8))
    assert "lies in the source" in problem("custom", tmp_path, tmp_path / "out", *COLUMNS, "--sizes={train: 1.0}")


def test_files_of_one_name_and_two_formats_are_both_counted(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "rows.jsonl", own(8)[:3])
    write_parquet(tmp_path / "in" / "rows.parquet", own(8)[3:])
    prepared = run("custom", tmp_path / "in", tmp_path / "out", *COLUMNS, "--sizes={test: 1.0}")
    assert sizes(check(prepared)) == {"test": 8} and prepared.card["files"] == {"rows": 8}


def test_a_failure_while_writing_leaves_the_earlier_files_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = write_jsonl(tmp_path / "rows.jsonl", own(8)), tmp_path / "out"
    run("custom", file, out, *COLUMNS, "--sizes={train: 4, test: 4}")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)  # the card, after the rows
    found = problem("custom", file, out, *COLUMNS, "--sizes={train: 8}", "--overwrite")
    assert "No space left on device" in found and "Nothing in it was changed" in found
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl"]


def test_a_failure_while_taking_the_place_puts_the_earlier_files_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = write_jsonl(tmp_path / "rows.jsonl", own(8)), tmp_path / "out"
    run("custom", file, out, *COLUMNS, "--sizes={train: 4, test: 4}")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def refused(path: Path, target: Path) -> None:
        assert not out.exists()  # the earlier folder has been moved aside by now
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refused)
    assert "Permission denied" in problem("custom", file, out, *COLUMNS, "--sizes={train: 8}", "--overwrite")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_folder_is_data_and_the_name_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the paper's presets look."""
    file = write_jsonl(tmp_path / "rows.jsonl", questions("webinstruct", 8))
    monkeypatch.chdir(tmp_path)
    prepare(load_config(PrepareConfig, ["--dataset=webinstruct", f"--source={file}"]))
    assert sizes(read(tmp_path / "data" / "webinstruct")) == {"train": 4, "validation": 2, "test": 2}
