"""Prompt data sets: formats, splits, checks of columns and rows, and fitting into the budget."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openrlhf_maestro.config.sections import DataSection
from openrlhf_maestro.data import DataError, PromptSet, fit_prompts, load_prompts

SHARED = Path(os.environ.get("MAESTRO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))

Rows = list[dict[str, Any]]


def pairs(count: int, **more: Any) -> Rows:
    return [{"prompt": f"p{n}", "reference": f"r{n}", **more} for n in range(count)]


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, rows: Rows) -> Path:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Rows) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "jsonl": write_jsonl,
    "json": write_json,
    "csv": write_csv,
    "parquet": write_parquet,
}


def load(dataset: Path | str, split: str = "train", **arguments: Any) -> PromptSet:
    options = {
        name: arguments.pop(name)
        for name in list(arguments)
        if name in DataSection.model_fields and name != "max_samples"
    }
    given: dict[str, Any] = {
        "needs_reference": True,
        "needing": "the `perplexity` component",
        "max_samples": 10**8,
        "render": None,
        "max_prompt_tokens": 8,
    }
    data = DataSection(prompt_dataset="unused", **options)
    return load_prompts(data, dataset=str(dataset), split=split, **{**given, **arguments})


def problem(dataset: Path | str, split: str = "train", **arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(dataset, split, **arguments)
    return str(caught.value)


# Formats.

AWKWARD: Rows = [
    {"prompt": 'two\nlines, "quoted", commas', "reference": "007", "datasource": "a"},
    {"prompt": "separator \u2028 inside, accents é, 漢字, 🦉", "reference": "null", "datasource": "b"},
    {"prompt": "<think>\r\n  indented", "reference": " kept as it is ", "datasource": ""},
]


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_prompts(suffix: str, tmp_path: Path) -> None:
    file = WRITERS[suffix](tmp_path / f"rows.{suffix}", AWKWARD)
    prompts = load(file)
    assert [prompt.text for prompt in prompts] == [row["prompt"] for row in AWKWARD]
    assert [prompt.reference for prompt in prompts] == ["007", "null", " kept as it is "]
    assert [prompt.datasource for prompt in prompts] == ["a", "b", "default"]
    assert [(prompt.source, prompt.row) for prompt in prompts] == [(str(file), n) for n in (1, 2, 3)]


def test_a_prompt_carries_what_its_row_says(tmp_path: Path) -> None:
    row = {"id": 17, "prompt": "Hello?", "reference": "yes", "datasource": "greetings", "split": "train", "level": 3}
    (prompt,) = load(write_jsonl(tmp_path / "rows.jsonl", [row]))
    assert (prompt.id, prompt.text, prompt.reference, prompt.datasource) == ("17", "Hello?", "yes", "greetings")
    assert prompt.messages == ({"role": "user", "content": "Hello?"},)
    assert prompt.metadata == {"level": 3} and prompt.token_ids == []


def test_a_row_without_an_id_is_named_by_its_place_in_the_file_wherever_that_lies(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(2))
    assert [prompt.id for prompt in load(file)] == ["rows.jsonl:1", "rows.jsonl:2"]


def test_columns_are_taken_by_the_keys_that_are_set(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"question": "q", "answer": "a", "family": "f"}])
    (prompt,) = load(file, input_key="question", label_key="answer", datasource_key="family")
    assert (prompt.text, prompt.reference, prompt.datasource, prompt.metadata) == ("q", "a", "f", {})


def test_json_lines_under_the_json_suffix_byte_order_marks_and_blank_lines_are_read(tmp_path: Path) -> None:
    text = '\ufeff{"prompt": "a", "reference": "b"}\n\n{"prompt": "c", "reference": "d"}\n'
    for name in ("rows.json", "rows.jsonl"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert [prompt.text for prompt in load(tmp_path / name)] == ["a", "c"]
    (tmp_path / "rows.csv").write_text("\ufeffprompt,reference\na,b\n\nc,d\n", encoding="utf-8")
    assert [prompt.row for prompt in load(tmp_path / "rows.csv")] == [1, 2]


def test_a_csv_cell_of_a_megabyte_is_read_and_the_limit_of_the_process_is_put_back(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    file = write_csv(tmp_path / "rows.csv", [{"prompt": "x\n" * 500_000, "reference": "r"}])
    assert len(load(file)[0].text) == 1_000_000
    assert csv.field_size_limit() == limit


def test_several_sources_follow_each_other(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", pairs(2, datasource="a"))
    second = write_csv(tmp_path / "b.csv", pairs(1, datasource="b"))
    prompts = load(f"{first}, {second}")
    assert [(prompt.datasource, prompt.row) for prompt in prompts] == [("a", 1), ("a", 2), ("b", 1)]


def data_sources(*sources: Path | str) -> list[tuple[str, int]]:
    prompts = load(",".join(map(str, sources)))
    return [(prompt.datasource, prompt.source_index) for prompt in prompts]


def test_rows_of_a_mixture_that_name_no_data_source_have_the_name_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("physics", "shards", "tales"):
        (tmp_path / folder).mkdir()
    own = write_jsonl(tmp_path / "own.jsonl", [*pairs(1, datasource="theirs"), *pairs(1, datasource="")])
    train = write_csv(tmp_path / "physics" / "train.csv", pairs(1))
    write_parquet(tmp_path / "shards" / "train-00000-of-00002.parquet", pairs(1))
    write_parquet(tmp_path / "shards" / "train-00001-of-00002.parquet", pairs(1))
    write_jsonl(tmp_path / "tales" / "anything.jsonl", pairs(1))
    shard = tmp_path / "shards" / "train-00001-of-00002.parquet"
    assert data_sources(own, train, tmp_path / "shards", f"{tmp_path / 'tales'}/", shard) == [
        ("theirs", 0), ("own", 0), ("physics", 1), ("shards", 2), ("shards", 2), ("tales", 3), ("shards", 4)
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path / "physics")
    assert data_sources("train.csv", "../tales", ".") == [("physics", 0), ("tales", 1), ("physics", 2)]


def test_a_hub_data_set_in_a_mixture_has_its_name_without_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub(monkeypatch, lambda name: ["train"])
    file = write_jsonl(tmp_path / "rows.v2.jsonl", pairs(1))
    assert data_sources("owner/name-1.5", file) == [("name-1.5", 0)] * 2 + [("rows.v2", 1)]


def test_a_source_alone_stays_the_default_data_source(tmp_path: Path) -> None:
    assert data_sources(write_jsonl(tmp_path / "physics.jsonl", pairs(1))) == [("default", 0)]


def test_a_data_set_saved_by_the_datasets_library_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(pairs(3))
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "both")
    rows.save_to_disk(tmp_path / "one")
    assert [prompt.text for prompt in load(tmp_path / "both", "test")] == ["p1"]
    assert len(load(tmp_path / "one", "anything")) == 3
    assert "it has test, train" in problem(tmp_path / "both", "dev")


def test_max_samples_counts_rows_of_the_split_over_all_sources(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", pairs(3))
    second = write_jsonl(
        tmp_path / "b.jsonl", [{"prompt": "test", "reference": "r", "split": "test"}, *pairs(3, split="train")]
    )
    assert [prompt.text for prompt in load(f"{first},{second}", max_samples=5)] == ["p0", "p1", "p2", "p0", "p1"]


# What cannot be read.


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', ["a.jsonl, line 2 is not JSON"]),
        ("a.jsonl", '{"prompt": "a"}\n\n["a"]\n', ["a.jsonl, row 2 is not an object"]),
        ("a.json", '[{"prompt": "a"},\n {"prompt": }]', ["a.json, line 2 is not JSON"]),
        ("a.json", '["a"]', ["a.json, row 1 is not an object"]),
        ("a.csv", "prompt,reference\na,b\nc,d,e\n", ["a.csv, row 2 has 3 cells; the header has 2"]),
        ("a.csv", 'prompt,reference\na,b\n"c,d\n', ["a.csv, at line", "not valid CSV"]),
        ("a.csv", "prompt,prompt\na,b\n", ["two columns called prompt"]),
        ("a.parquet", "prompt", ["a.parquet is not valid parquet"]),
        ("a.txt", "prompt", ["a.txt is none of the formats", ".jsonl"]),
        ("a.jsonl", b"\xff\xfe{}", ["not a UTF-8 text"]),
        ("a.csv", b"prompt\n\xe9\n", ["not a UTF-8 text"]),
        ("a.jsonl", "", ["no column `prompt`", "(none)"]),
        ("a.csv", "prompt,reference\n", ["no rows"]),
    ],
)
def test_files_that_cannot_be_read(name: str, content: str | bytes, fragments: list[str], tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = problem(file)
    assert str(file) in message and "\n" not in message
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("name", ["nowhere.jsonl", "./nowhere", "/no/where", "bundled:other", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(name: str) -> None:
    assert problem(name) == f"there is no file or folder {name}."


def test_an_empty_folder_names_the_formats(tmp_path: Path) -> None:
    assert ".parquet" in problem(tmp_path)


def fake_hub(monkeypatch: pytest.MonkeyPatch, splits: Callable[[str], list[str]]) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(pairs(2))
    monkeypatch.setattr(datasets, "get_dataset_split_names", splits)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows)


def test_a_name_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, lambda name: ["train", "test"])
    assert [prompt.id for prompt in load("owner/name")] == ["name:1", "name:2"]
    assert problem("owner/name", "dev") == "owner/name on the hub has no split `dev`; it has train, test."


def test_a_name_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> list[str]:
        raise ConnectionError("could\nnot connect")

    fake_hub(monkeypatch, refuse)
    message = problem("owner/name")
    assert message == "owner/name is no file or folder here and cannot be loaded from the hub: could not connect"


# Splits.


def test_a_split_column_selects_rows_and_keeps_their_numbers(tmp_path: Path) -> None:
    rows = [{**row, "split": split} for row, split in zip(pairs(4), ["train", "test", "train", "test"], strict=True)]
    file = write_csv(tmp_path / "rows.csv", rows)
    assert [(prompt.text, prompt.row) for prompt in load(file, "test")] == [("p1", 2), ("p3", 4)]


def test_an_absent_split_lists_those_there_are(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [*pairs(1, split="train"), *pairs(1, split="test")])
    assert problem(file, "dev") == f"{file} has no split `dev`; it has test, train."


def test_a_row_of_no_split_among_others_is_an_error(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [*pairs(1, split="train"), *pairs(1)])
    assert f"{file}, row 2: the column `split` names no split" in problem(file)


def test_a_file_without_a_split_column_serves_every_split(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "train.jsonl", pairs(2))
    assert len(load(file, "train")) == len(load(file, "test")) == 2


def test_in_a_folder_the_names_of_files_are_splits(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", pairs(3))
    write_parquet(tmp_path / "test-00000-of-00002.parquet", pairs(1))
    write_parquet(tmp_path / "test-00001-of-00002.parquet", pairs(1))
    (tmp_path / "README.md").write_text("no rows")
    assert len(load(tmp_path, "train")) == 3
    assert [Path(prompt.source).name[:10] for prompt in load(tmp_path, "test")] == ["test-00000", "test-00001"]
    assert "has no split `dev`; it has test, train." in problem(tmp_path, "dev")


def test_a_file_alone_in_its_folder_serves_every_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", pairs(2))
    assert len(load(tmp_path, "train")) == 2


def test_a_split_column_counts_in_folders_too(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*pairs(1, split="train"), *pairs(2, split="test")])
    write_jsonl(tmp_path / "train.jsonl", pairs(4))
    assert (len(load(tmp_path, "train")), len(load(tmp_path, "test"))) == (5, 2)


# Columns and rows.


def test_a_missing_prompt_column_lists_the_columns(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"question": "q", "reference": "r"}])
    message = problem(file)
    assert "no column `prompt`" in message and "question, reference" in message and "data.input_key" in message


def test_a_missing_reference_column_names_the_component(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "q", "answer": "r"}])
    message = problem(file)
    assert "no column `reference`" in message and "the `perplexity` component" in message
    assert "prompt, answer" in message and "data.label_key" in message
    assert load(file, needs_reference=False)[0].reference is None


def test_columns_are_checked_in_every_source(tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "good.jsonl", pairs(100))
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "q"}])
    assert f"{bad} has no column" in problem(f"{good},{bad}")


def with_empty(tmp_path: Path, count: int, of: int, column: str, value: Any = " \n") -> Path:
    rows = pairs(of)
    for row in rows[2 : 2 + count]:
        row[column] = value
    return write_jsonl(tmp_path / "rows.jsonl", rows)


@pytest.mark.parametrize("value", ["", " \n\t", "\u3000", None])
@pytest.mark.parametrize(("column", "reason"), [("reference", "empty reference"), ("prompt", "empty prompt")])
def test_empty_texts_are_dropped_and_counted(column: str, reason: str, value: Any, tmp_path: Path) -> None:
    prompts = load(with_empty(tmp_path, 5, 100, column, value))
    assert len(prompts) == 95 and prompts.dropped == {reason: 5}
    assert [prompt.row for prompt in prompts][:4] == [1, 2, 8, 9]


def test_too_many_empty_references_stop_the_run(tmp_path: Path) -> None:
    message = problem(with_empty(tmp_path, 6, 100, "reference"))
    assert "6 of 100 rows" in message and "6 empty reference" in message and "rows.jsonl row 3" in message
    assert "data.max_dropped_rate is 0.05" in message


def test_the_share_counts_all_reasons_together(tmp_path: Path) -> None:
    rows = pairs(100)
    for row in rows[:3]:
        row["prompt"] = ""
    for row in rows[3:6]:
        row["reference"] = ""
    message = problem(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert "6 of 100" in message and "3 empty prompt" in message and "3 empty reference" in message


def test_an_empty_reference_that_nobody_needs_stays(tmp_path: Path) -> None:
    prompts = load(with_empty(tmp_path, 50, 100, "reference"), needs_reference=False)
    assert len(prompts) == 100 and prompts.dropped == {} and prompts[2].reference is None


def test_nothing_left_is_an_error_whatever_the_share(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p", "reference": ""}])
    assert "1 of 1 rows" in problem(file, max_dropped_rate=1.0)


@pytest.mark.parametrize(
    ("row", "fragments"),
    [
        ({"prompt": 3, "reference": "r"}, ["row 2: `prompt` is an int (3), not a text. Write it as one, or name "]),
        ({"prompt": "p", "reference": 4.5}, ["row 2: `reference` is a float (4.5), not a text"]),
        ({"prompt": "p", "reference": ["r"]}, ["row 2: `reference` is a list"]),
        ({"prompt": "p", "reference": "r", "datasource": 3}, ["row 2: `datasource` is an int"]),
        ({"prompt": ["p"], "reference": "r"}, ["row 2", "`role`", "`content`"]),
        ({"prompt": [{"role": "user"}], "reference": "r"}, ["row 2", "`role`", "`content`"]),
        ({"prompt": [{"role": "user", "content": [1]}], "reference": "r"}, ["row 2", "both texts"]),
    ],
)
def test_values_of_the_wrong_kind_name_their_row(row: dict[str, Any], fragments: list[str], tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [*pairs(1), row])
    message = problem(file)
    assert message.startswith(f"{file}, row 2: ")
    for fragment in fragments:
        assert fragment in message


# Shown to the policy.

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_prompt_may_be_a_list_of_chat_messages(suffix: str, tmp_path: Path) -> None:
    (prompt,) = load(WRITERS[suffix](tmp_path / f"rows.{suffix}", [{"prompt": CHAT, "reference": "r"}]))
    assert list(prompt.messages) == CHAT and prompt.text == "Be brief.\n\nWhy?"


@pytest.mark.parametrize("options", [{"apply_chat_template": False}, {"input_template": "Q: {}"}])
def test_chat_messages_need_the_chat_template(options: dict[str, Any], tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": CHAT, "reference": "r"}])
    assert "row 1" in problem(file, **options) and "data.apply_chat_template" in problem(file, **options)


def test_the_input_template_is_filled_once_and_braces_elsewhere_do_no_harm(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "f() {} {x}", "reference": "r"}])
    (prompt,) = load(file, input_template='{"q": {}}')
    assert prompt.text == prompt.messages[0]["content"] == '{"q": f() {} {x}}'


def characters(shown: Any) -> list[int]:
    """A tokenizer of one token a character, after the markers 1 for messages and 2 for text."""
    if isinstance(shown, str):
        return [2, *map(ord, shown)]
    return [1, *(ord(character) for message in shown for character in message["content"])]


def test_render_gets_messages_or_text(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(1))
    assert load(file, render=characters)[0].token_ids == [1, ord("p"), ord("0")]
    assert load(file, render=characters, apply_chat_template=False)[0].token_ids == [2, ord("p"), ord("0")]


def lengths(tmp_path: Path, long: int, of: int = 100) -> Path:
    """`long` of the rows have 8 characters, the others 7; the marker is one more token."""
    rows = [{"prompt": "abcdefgh" if n < long else "abcdefg", "reference": "r"} for n in range(of)]
    return write_jsonl(tmp_path / "rows.jsonl", rows)


def test_prompts_over_the_budget_are_dropped_and_counted(tmp_path: Path) -> None:
    prompts = load(lengths(tmp_path, 5), render=characters, max_prompt_tokens=8)
    assert prompts.dropped == {"too long": 5} and [prompt.row for prompt in prompts] == list(range(6, 101))
    assert {len(prompt.token_ids or []) for prompt in prompts} == {8}


def test_too_many_prompts_over_the_budget_stop_the_run(tmp_path: Path) -> None:
    message = problem(lengths(tmp_path, 6), render=characters, max_prompt_tokens=8)
    assert "6 of 100 rows" in message and "6 too long" in message and "row 1" in message
    assert "8 tokens" in message and "data.max_len" in message


def test_prompts_are_cut_at_their_start_where_asked_for(tmp_path: Path) -> None:
    prompts = load(lengths(tmp_path, 100), render=characters, max_prompt_tokens=3, truncate_prompts=True)
    assert prompts.dropped == {} and prompts[0].token_ids == [ord("f"), ord("g"), ord("h")]


def test_rows_dropped_before_count_towards_the_same_share(tmp_path: Path) -> None:
    rows = [{"prompt": "abcdefgh", "reference": "r"}] * 3 + [{"prompt": "a", "reference": ""}] * 3 + pairs(94)
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert load(file).dropped == {"empty reference": 3}
    message = problem(file, render=characters, max_prompt_tokens=8)
    assert "6 of 100 rows" in message and "3 empty reference" in message and "3 too long" in message


def test_checking_first_and_fitting_later_is_the_same_as_at_once(tmp_path: Path) -> None:
    file = lengths(tmp_path, 2)
    later = fit_prompts(load(file), DataSection(prompt_dataset="unused"), render=characters, max_prompt_tokens=8)
    assert later == load(file, render=characters, max_prompt_tokens=8)


# The real rows.

NOVER = ("emobench", "general_thoughts", "natural_reasoning", "opus_books", "tombench", "webinstruct")


@pytest.mark.skipif(not (SHARED / "nover_csv").is_dir(), reason="the shared data is not here")
@pytest.mark.parametrize("name", NOVER)
def test_real_rows(name: str) -> None:
    file = SHARED / "nover_csv" / f"{name}.csv"
    table = pytest.importorskip("pandas").read_csv(file, dtype=str, keep_default_na=False)
    for split in sorted(set(table["split"])):
        expected = table[(table["split"] == split) & (table["reference"].str.strip() != "")]
        prompts = load(file, split, max_dropped_rate=1.0)
        assert [prompt.text for prompt in prompts] == list(expected["prompt"])
        assert [prompt.reference for prompt in prompts] == list(expected["reference"])
        assert [prompt.row for prompt in prompts] == [index + 1 for index in expected.index]


def test_the_module_needs_neither_torch_nor_datasets(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "rows.csv", pairs(3))
    script = (
        "import sys; from openrlhf_maestro.config.sections import DataSection; "
        "from openrlhf_maestro.data import load_prompts; "
        "load_prompts(DataSection(prompt_dataset='x'), dataset=sys.argv[1], split='train', needs_reference=True, "
        "needing='x', max_samples=9, render=None, max_prompt_tokens=9); "
        "print([name for name in ('torch', 'transformers', 'datasets', 'ray', 'pandas') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(file)]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
