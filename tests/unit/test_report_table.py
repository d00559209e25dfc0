"""The tables of responses: which rows are chosen, and that what is embedded cannot leave its place."""

from __future__ import annotations

import html
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_maestro.report import write_report
from openrlhf_maestro.report.embed import embedded_json, script_hash, visible
from openrlhf_maestro.report.rollouts import evenly
from openrlhf_maestro.report.run import load_run
from openrlhf_maestro.report.sample import (
    MAX_CHARACTERS,
    MAX_EARLIER_FILES,
    MAX_EVALUATED,
    MAX_ROWS,
    MAX_TEXT,
    sample_evaluation,
    sample_rollouts,
)

SIZE = 5


def make_run(folder: Path, steps: int, groups: int, response: str = "text", **columns: Any) -> Path:
    """A run of `steps` files with `groups` groups of SIZE responses each."""
    (folder / "rollouts").mkdir(parents=True)
    (folder / "config.yaml").write_text("run: {name: sampled}")
    records = [{"step": step, "reward/one/raw_mean": 0.5} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for step in range(1, steps + 1):
        table = {
            "step": [step] * groups * SIZE,
            "prompt": [f"p{group}" for group in range(groups) for _ in range(SIZE)],
            "response": [response] * groups * SIZE,
            "reference": ["r"] * groups * SIZE,
            "datasource": ["set"] * groups * SIZE,
            "group": [group for group in range(groups) for _ in range(SIZE)],
            "action": ["one"] * groups * SIZE,
            "scalar_reward": [0.5] * groups * SIZE,
            "advantage": [0.25] * groups * SIZE,
            "truncated": [False] * groups * SIZE,
            "response_tokens": [3] * groups * SIZE,
            "raw_one": [1.0] * groups * SIZE,
            "norm_one": [0.5] * groups * SIZE,
            "weight_one": [1.0] * groups * SIZE,
        }
        table |= {name: [value] * groups * SIZE for name, value in columns.items()}
        pq.write_table(pa.table(table), folder / "rollouts" / f"step_{step:06d}.parquet")
    return folder


def write_evaluation(folder: Path, step: int, rows: list[dict[str, Any]]) -> None:
    (folder / "evaluations").mkdir(exist_ok=True)
    same = {"datasource": "set", "prompt": "p", "reference": "r", "response": f"at {step}", "right": True}
    table = pa.Table.from_pylist([same | {"step": step} | row for row in rows])
    pq.write_table(table, folder / "evaluations" / f"step_{step:06d}.parquet")


def embedded(page: Path, kind: str) -> Any:
    source = page.read_text(encoding="utf-8")
    (text,) = re.findall(rf'<script type="application/json" id="{kind}-data">(.*?)</script>', source, flags=re.DOTALL)
    return json.loads(text)


# ── which rows ──


def test_a_small_run_is_there_whole(tmp_path: Path) -> None:
    sample = sample_rollouts(load_run(make_run(tmp_path / "run", steps=4, groups=6)))
    assert (len(sample.rows), sample.total, sample.steps) == (4 * 6 * SIZE, 4 * 6 * SIZE, [1, 2, 3, 4])
    assert [row.step for row in sample.rows] == sorted((row.step for row in sample.rows), reverse=True)


def test_a_long_run_gives_its_newest_steps_and_whole_groups_of_the_others(tmp_path: Path) -> None:
    # 60 steps of 40 responses: 25 whole steps fill half of 2,000 rows, the other 35 share the rest.
    sample = sample_rollouts(load_run(make_run(tmp_path / "run", steps=60, groups=8)))
    assert sample.total == 2400
    assert len(sample.rows) <= MAX_ROWS
    by_step = {step: [row for row in sample.rows if row.step == step] for step in sample.steps}
    assert [len(by_step[step]) for step in range(36, 61)] == [40] * 25
    assert sample.steps == list(range(1, 61))
    # floor(1,000 / 35) = 28 rows are five groups of five.
    assert {len(by_step[step]) for step in range(1, 36)} == {5 * SIZE}
    members = [[row.group for row in rows].count(row.group) for rows in by_step.values() for row in rows]
    assert set(members) == {SIZE}


def test_of_very_many_steps_some_are_read_at_even_distances(tmp_path: Path) -> None:
    sample = sample_rollouts(load_run(make_run(tmp_path / "run", steps=500, groups=1)))
    newest, earlier = range(301, 501), [step for step in sample.steps if step <= 300]
    assert set(newest) <= set(sample.steps)
    assert len(earlier) == MAX_EARLIER_FILES
    assert (earlier[0], earlier[-1]) == (1, 300)
    gaps = {later - sooner for sooner, later in pairwise(earlier)}
    assert gaps <= {7, 8}  # 299 / 39 = 7.7


def test_a_step_that_does_not_fit_is_thinned_in_whole_groups(tmp_path: Path) -> None:
    sample = sample_rollouts(load_run(make_run(tmp_path / "run", steps=1, groups=600)))
    assert sample.total == 3000
    # Half of the rows are for the newest step: 1,000 / 3,000 of 600 groups.
    assert len(sample.rows) == 200 * SIZE
    groups = list(dict.fromkeys(row.group for row in sample.rows))
    assert (groups[0], groups[-1]) == (0, 599)


def test_long_texts_lower_the_number_of_groups(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=2, groups=100, response="x" * 5000)
    sample = sample_rollouts(load_run(folder))
    characters = sum(len(row.response) for row in sample.rows)
    assert 0.9 * MAX_CHARACTERS < characters <= MAX_CHARACTERS
    assert sample.total == 1000
    assert f"{len(sample.rows)} of 1,000 responses" in write_report(folder).read_text(encoding="utf-8")


@given(st.integers(1, 300), st.integers(1, 300))
def test_an_even_choice_has_both_ends_and_no_repeats(length: int, count: int) -> None:
    chosen = evenly(list(range(length)), count)
    assert len(chosen) == len(set(chosen)) == min(length, count)
    assert chosen == sorted(chosen)
    assert chosen[-1] == length - 1
    assert chosen[0] == 0 or count == 1


def test_a_damaged_file_is_said_once_and_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=3, groups=2)
    (folder / "rollouts/step_000002.parquet").write_bytes(b"PAR1 no longer")
    page = write_report(folder).read_text(encoding="utf-8")
    assert page.count("rollouts/step_000002.parquet could not be read") == 1
    assert "All 20 responses" in page


def test_the_last_evaluation_stands_beside_the_first_by_id_and_number_of_the_sample(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=9, groups=1)
    write_evaluation(
        folder, 0, [{"id": name, "right": right} for name, right in [("a", True), ("b", True), ("b", False)]]
    )
    write_evaluation(folder, 4, [{"id": "a"}])
    write_evaluation(folder, 9, [{"id": name} for name in ("b", "new", "b", "a")])
    sample = sample_evaluation(load_run(folder))
    assert [(pair.last.id, pair.first and pair.first.right) for pair in sample.pairs] == [
        ("b", True),
        ("new", None),
        ("b", False),
        ("a", True),
    ]
    assert {pair.last.step for pair in sample.pairs} == {9}


def test_a_large_evaluation_is_thinned_and_said_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=1, groups=1)
    write_evaluation(folder, 1, [{"id": str(index)} for index in range(2500)])
    assert len(sample_evaluation(load_run(folder)).pairs) == MAX_EVALUATED
    assert "1,000 of 2,500 held-out responses" in write_report(folder).read_text(encoding="utf-8")


def test_a_verdict_may_be_a_score_alone(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=1, groups=1)
    write_evaluation(folder, 1, [{"id": "a", "right": None, "score": 0.25}])
    page = write_report(folder)
    assert embedded(page, "evaluation")["rows"] == [["set", "p", "r", "at 1", None, 0.25, None]]
    assert 'data-cell="score"' in page.read_text(encoding="utf-8")


# ── what is embedded ──


def test_numbers_and_texts_arrive_as_they_are(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=1, groups=1, raw_one=-math.inf, advantage=math.nan, scalar_reward=1 / 3)
    data = embedded(write_report(folder), "rollouts")
    assert data["components"] == [["one", "c5"]]
    assert data["groups"] == [[1, 0, "set", "p0", "r"]]
    assert data["rows"] == [[0, "text", 0, 0.333333, None, 3, 0, ["fault"], [0.5], [1.0]]] * SIZE


@given(st.text())
def test_embedded_json_reads_back_and_holds_nothing_that_ends_a_script(text: str) -> None:
    found = embedded_json({"text": text})
    assert json.loads(found) == {"text": text}
    assert not set("<>&\u2028\u2029") & set(found)


def test_embedded_json_refuses_what_is_no_json() -> None:
    with pytest.raises(ValueError):
        embedded_json([math.nan])


def test_the_hash_is_that_of_the_specification() -> None:
    # CSP Level 3, section 8.3 and MDN: the hash of `doSomething();`.
    assert script_hash("doSomething();") == "sha256-RFWPLDbv2BY+rCkDzsE+0fr8ylGr2R2faWMhq4lfEQc="


def test_what_a_browser_would_drop_or_obey_is_shown() -> None:
    assert visible("a\x00b\x1b[0m\x7f\r\n\t", 100) == "a␀b␛[0m␡␍\n\t"
    assert visible("a\u202eb\u2066c", 100) == "a⟨U+202E⟩b⟨U+2066⟩c"
    assert visible("\ud800", 100) == "\ufffd"


def test_a_very_long_text_is_cut_with_a_count(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=1, groups=1, response="x" * 200_000)
    (_, response, *_), *_ = embedded(write_report(folder), "rollouts")["rows"]
    assert response == "x" * MAX_TEXT + f" … ({200_000 - MAX_TEXT:,} more characters)"


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--<script>", "]]>&amp;", "\u2028\u2029"])
def test_hostile_text_stays_inside_its_element(tmp_path: Path, text: str) -> None:
    folder = make_run(tmp_path / "run", steps=1, groups=1, response=text, prompt=text, datasource=text)
    page = write_report(folder)
    source = page.read_text(encoding="utf-8")
    assert source.count("<script") == source.count("</script>") == 2
    assert "<!--" not in source
    assert embedded(page, "rollouts")["groups"][0][2:4] == [text, text]
    assert html.escape(text) in source  # the examples, as HTML
