"""Several runs on one page: names, final figures, options; and the tables of `maestro evaluate`."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

from openrlhf_maestro.errors import DataError, UserError
from openrlhf_maestro.evaluation.compare import compare
from openrlhf_maestro.evaluation.loading import load_evaluations
from openrlhf_maestro.evaluation.results import Result, write_results
from openrlhf_maestro.evaluation.tables import summarise
from openrlhf_maestro.report import Extras, ReportError, write_comparison, write_report
from openrlhf_maestro.report.compare import contenders, differing_options, distinct_names, mean_of_last
from openrlhf_maestro.report.run import Series

HOSTILE = "</script><img src=x onerror=alert(1)>"


def make_run(folder: Path, name: str, *, steps: int = 20, kl: float = 0.01, **sections: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"name": name, "dir": str(folder)}, **sections}))
    records = [
        {
            "step": step,
            "reward/scalar_mean": 0.5 + 0.01 * (step % 2),
            "rollout/response_length_mean": 20.0,
            "rollout/tokens": 500,
            "time/step_s": 2.0,
            "policy/kl": kl,
            "reward/length/raw_mean": 0.9,
            "conductor/weight/length": 1.0,
        }
        for step in range(1, steps + 1)
    ]
    records[-1] |= {"eval/social/accuracy": 0.75, "eval/social/n": 40}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def rows(page: Path, section: str) -> list[list[str]]:
    """The cells of the first table of a section, marks removed."""
    source = page.read_text(encoding="utf-8").partition(f'<section id="{section}">')[2].partition("</table>")[0]
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", source, flags=re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in found]
    return [[" ".join(re.sub("<[^>]*>", " ", cell).replace("\u202f", " ").split()) for cell in row] for row in cells]


# ── names ──


@pytest.mark.parametrize(
    ("names", "folders", "expected"),
    [
        (["a", "b"], ["runs/x", "runs/y"], ["a", "b"]),
        (["a", "a"], ["runs/x", "runs/y"], ["a (x)", "a (y)"]),
        (["a", "a", "c"], ["one/x", "two/x", "two/y"], ["a (one/x)", "a (two/x)", "c"]),
        (["a", "a"], ["one/deep/x", "two/deep/x"], ["a (one/deep/x)", "a (two/deep/x)"]),
    ],
)
def test_same_names_are_told_apart_by_the_end_of_their_path(
    names: list[str], folders: list[str], expected: list[str]
) -> None:
    assert distinct_names(names, [Path(folder) for folder in folders]) == expected


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", "a")
    with pytest.raises(UserError, match="given 2 times"):
        contenders([folder, folder / ".." / "a"])


def test_more_runs_than_there_are_colours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="at most 8"):
        contenders([tmp_path / str(index) for index in range(9)])


# ── figures ──


def test_a_final_figure_is_the_mean_of_the_last_ten_steps_with_students_interval() -> None:
    values = [100.0] * 5 + [0.1, 0.4, 0.2, 0.3, 0.5, 0.2, 0.1, 0.6, 0.4, 0.2]
    found = mean_of_last(Series(list(range(15)), values))
    # t of 9 degrees of freedom at 97.5 %, from a printed table: 2.262.
    half = 2.262 * statistics.stdev(values[5:]) / math.sqrt(10)
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((0.3 - half, 0.3 + half), rel=1e-3)


def test_a_single_step_has_no_interval_and_none_has_no_mean() -> None:
    one = mean_of_last(Series([1], [0.5]))
    assert one.value == 0.5 and math.isnan(one.low)
    assert math.isnan(mean_of_last(Series([], [])).value)


def test_the_page_shows_each_runs_figures(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "a", "first", kl=0.02), make_run(tmp_path / "b", "second", steps=9, kl=0.04)]
    page = write_comparison(folders, tmp_path / "page.html")
    _, first, second = rows(page, "figures")
    # Wilson's interval of 30 of 40 is 59.8 to 85.8 %.
    assert first[:3] == ["first", "20", "75.0 % 30/40, 60–86"]
    assert first[3:] == ["0.505 0.501 to 0.509", "20.0 20.0 to 20.0", "0.0200 0.0200 to 0.0200", "2.00 s", "4.00 ms"]
    assert second[:2] == ["second", "9"]
    assert second[5].startswith("0.0400")


def evaluated(folder: Path, name: str, *evaluations: dict[str, Any]) -> Path:
    """A run with these evaluations, (share, n) by data set, at steps 0, 20, ..."""
    make_run(folder, name, steps=1)
    records = [{"step": 20 * place} for place, _ in enumerate(evaluations)]
    for record, found in zip(records, evaluations, strict=True):
        for datasource, (share, n) in found.items():
            record |= {f"eval/{datasource}/accuracy": share, f"eval/{datasource}/n": n}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_the_final_accuracy_is_of_all_data_sets_whatever_their_order(tmp_path: Path) -> None:
    """The union of the two in order of appearance ends with y, which only the second has."""
    one = evaluated(tmp_path / "one", "one", {"x": (0.6, 100), "overall": (0.6, 100)})
    two = evaluated(tmp_path / "two", "two", {"x": (0.9, 100), "y": (0.11, 100), "overall": (0.505, 200)})
    three = evaluated(tmp_path / "three", "three", {"z": (0.3, 10)})
    page = write_comparison([one, two, three], tmp_path / "page.html")
    header, *table = rows(page, "figures")
    assert header[2] == "held-out accuracy, overall"
    assert [row[2].partition(" %")[0] for row in table] == ["60.0", "50.5", "–"]
    assert [row[0] for row in rows(page, "accuracy")[1:]] == ["x", "y", "z", "overall"]
    assert "not evaluated on the same data sets" in page.read_text(encoding="utf-8")


def test_the_final_accuracy_names_the_only_data_set(tmp_path: Path) -> None:
    page = write_comparison([make_run(tmp_path / name, name) for name in "ab"], tmp_path / "page.html")
    assert rows(page, "figures")[0][2] == "held-out accuracy, social"
    assert "not evaluated on the same data sets" not in page.read_text(encoding="utf-8")


def test_without_an_overall_accuracy_no_data_set_takes_its_place(tmp_path: Path) -> None:
    folders = [evaluated(tmp_path / name, name, {name: (0.5, 10)}) for name in "ab"]
    page = write_comparison(folders, tmp_path / "page.html")
    assert rows(page, "figures")[0][:3] == ["run", "steps", "scalar reward"]


def test_a_data_set_that_the_last_evaluation_left_out_has_no_final_accuracy(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "a", "a", {"x": (0.5, 10), "y": (0.5, 10)}, {"x": (0.7, 10)})
    page = write_comparison([folder, make_run(tmp_path / "b", "b")], tmp_path / "page.html")
    found = {row[0]: row[1] for row in rows(page, "accuracy")}
    assert found["x"].startswith("70.0 %") and found["y"] == "–"


def test_every_quantity_is_drawn_with_a_line_a_run(tmp_path: Path) -> None:
    page = write_comparison([make_run(tmp_path / "a", "a"), make_run(tmp_path / "b", "b")], tmp_path / "page.html")
    drawings = re.findall(r"<svg.*?</svg>", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(drawings) == 7  # a weight, two rewards, length, KL, and two of the time
    assert all("var(--r0)" in drawing and "var(--r1)" in drawing for drawing in drawings)


def test_only_options_that_differ_are_listed(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / "a", "a", actor={"adam": {"lr": 1e-4, "eps": 1e-8}}, rewards={"components": ["x"]}),
        make_run(tmp_path / "b", "b", actor={"adam": {"lr": 1e-5, "eps": 1e-8}}, train={"seed": 3}),
    ]
    assert differing_options(contenders(folders)) == {
        "actor.adam.lr": [1e-4, 1e-5],
        "rewards.components": [["x"], None],
        "train.seed": [None, 3],
    }
    page = write_comparison(folders, tmp_path / "page.html")
    assert rows(page, "options")[1:] == [
        ["actor.adam.lr", "0.0001", "1e-05"],
        ["rewards.components", "[&#39;x&#39;]", "–"],
        ["train.seed", "–", "3"],
    ]


def test_runs_of_the_same_options_are_said_to_be(tmp_path: Path) -> None:
    page = write_comparison([make_run(tmp_path / "a", "a"), make_run(tmp_path / "b", "b")], tmp_path / "page.html")
    assert "All options are the same" in page.read_text(encoding="utf-8")


def test_a_comparison_escapes_names(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "a", HOSTILE), make_run(tmp_path / "b", "b", train={HOSTILE: HOSTILE})]
    source = write_comparison(folders, tmp_path / "page.html").read_text(encoding="utf-8")
    assert source.count("<script") == source.count("</script>") == 1
    assert "<img" not in source


def test_a_run_that_has_not_begun_can_be_compared(tmp_path: Path) -> None:
    young = tmp_path / "young"
    young.mkdir()
    (young / "config.yaml").write_text("run: {name: young}")
    page = write_comparison([make_run(tmp_path / "a", "a"), young], tmp_path / "page.html")
    assert rows(page, "figures")[2] == ["young", "0", "–", "–", "–", "–", "–", "–"]


# ── `maestro evaluate` ──


def write_evaluation(folder: Path, name: str, results: list[Result], **verdict: Any) -> Path:
    folder.mkdir()
    about = {"name": name, "model": "models/m", "data": "test.jsonl", "verdict": {"kind": "rule"} | verdict}
    (folder / "summary.json").write_text(json.dumps(about | summarise(results, resamples=200).to_json()))
    return folder


def judged(datasource: str, rights: list[bool | None]) -> list[Result]:
    return [
        Result(
            key=f"{datasource}{index}#0",
            id=f"{datasource}{index}",
            sample=0,
            datasource=datasource,
            cluster=None,
            right=right,
            score=None if right is None else float(right),
            votes=(right, right, None),
        )
        for index, right in enumerate(rights)
    ]


def test_an_evaluation_is_shown_with_counts_interval_missing_and_unparsable_votes(tmp_path: Path) -> None:
    results = judged("social", [True] * 30 + [False] * 9 + [None]) + judged("story", [True, False])
    folder = write_evaluation(tmp_path / "e", "base", results, kind="judge", model="a judge", votes=3, by_datasource={})
    page = write_report(make_run(tmp_path / "run", "run"), None, Extras([folder]))
    header, *table = rows(page, "evaluations")
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in table}
    assert cells["social"]["right"].replace(" ", "") == "30/39"
    # Wilson's interval of 30 of 39.
    assert re.findall(r"[\d.]+", cells["social"]["share (95 %)"]) == ["76.9", "61.7", "87.4"]
    assert cells["social"]["no verdict"] == "1"
    assert cells["social"]["unparsable votes"].replace(" ", "") == "42/120"
    assert cells["overall"]["right"].replace(" ", "") == "31/41"
    source = page.read_text(encoding="utf-8")
    assert "judge (model a judge, votes 3)" in source
    bars = [float(low) for low in re.findall(r'<i style="left: ([\d.]+)%', source.partition('id="evaluations"')[2])]
    assert bars[0] == pytest.approx(61.7, abs=0.05)


def test_evaluations_are_shown_with_several_runs_too(tmp_path: Path) -> None:
    folders = [
        write_evaluation(tmp_path / f"e{place}", name, judged("social", [True, False]))
        for place, name in enumerate(("base", HOSTILE))
    ]
    runs = [make_run(tmp_path / "a", "a"), make_run(tmp_path / "b", "b")]
    source = write_comparison(runs, tmp_path / "page.html", Extras(folders)).read_text(encoding="utf-8")
    assert len(re.findall("1 ?/ ?2<", source)) == 2
    assert "<img" not in source


def test_a_comparison_of_evaluations_is_shown_with_its_tests_and_notes(tmp_path: Path) -> None:
    base = [True] * 20 + [False] * 20
    better = [True] * 28 + [False] * 2 + [True] * 4 + [False] * 6
    folders = []
    for name, rights in (("base", base), ("better", better)):
        results = judged("social", rights)
        folders.append(write_evaluation(tmp_path / name, name, results))
        write_results(folders[-1] / "results.jsonl", results)
    comparison = compare(load_evaluations(folders), resamples=200)
    (tmp_path / "comparison.json").write_text(json.dumps(comparison.to_json()))
    page = write_report(make_run(tmp_path / "run", "run"), None, Extras(comparison=tmp_path / "comparison.json"))
    text = page.read_text(encoding="utf-8").partition('id="evaluations"')[2].partition("</section>")[0]
    assert re.search("20 ?/ ?40", text) and re.search("32 ?/ ?40", text)
    # Exact McNemar of 12 : 0, two-sided: 2 / 2^12.
    assert re.search(r"12 ?: ?0", text)
    assert "&lt; 0.001" in text
    assert "p (Holm)" in text
    assert "bootstrap resamples" in text


def test_a_comparison_without_a_verdict_is_refused(tmp_path: Path) -> None:
    folders = [write_evaluation(tmp_path / name, name, judged("social", [True, False])) for name in ("a", "b")]
    for folder in folders:
        write_results(folder / "results.jsonl", judged("social", [True, False]))
    content = compare(load_evaluations(folders), resamples=200).to_json()
    run = make_run(tmp_path / "run", "run")
    for broken in ({"verdict": {}}, {"confidence": "high"}):
        (tmp_path / "comparison.json").write_text(json.dumps(content | broken))
        with pytest.raises(DataError, match="not a comparison of evaluations"):
            write_report(run, None, Extras(comparison=tmp_path / "comparison.json"))


def test_a_summary_whose_numbers_are_none_is_refused(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "e", "base", judged("social", [True, False]))
    content = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(content | {"confidence": "high"}))
    with pytest.raises(DataError, match="is no summary of an evaluation"):
        write_report(make_run(tmp_path / "run", "run"), None, Extras([folder]))


def test_a_comparison_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="comparison"):
        write_report(make_run(tmp_path / "run", "run"), None, Extras(comparison=tmp_path / "nowhere"))


@pytest.mark.parametrize("content", [None, "", "{}", '{"name": 1, "verdict": []}', "[1]"])
def test_a_folder_without_a_summary_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "e"
    folder.mkdir()
    if content is not None:
        (folder / "summary.json").write_text(content)
    run = make_run(tmp_path / "run", "run")
    with pytest.raises(DataError, match=r"summary\.json") as caught:
        write_report(run, None, Extras([folder]))
    assert len(str(caught.value)) < 400
    assert not (run / "report.html").exists()
