"""`maestro evaluate --compare`: pairing, tables, files and what is refused; and the summary of one evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_maestro.cli.compare import run
from openrlhf_maestro.errors import DataError, UserError
from openrlhf_maestro.evaluation.compare import Comparison, Contrast, compare, read_comparison
from openrlhf_maestro.evaluation.comparison_page import markdown, notes, tables
from openrlhf_maestro.evaluation.loading import Evaluation, load_evaluations
from openrlhf_maestro.evaluation.results import Result, write_results
from openrlhf_maestro.evaluation.tables import Summary, SummaryRow, Table, summarise, table
from openrlhf_maestro.evaluation.tables import markdown as summary_markdown

JUDGE = {"kind": "judge", "model": "qwen", "prompt": "strict", "votes": 3}
Votes = tuple[bool | None, ...]


def result(
    row: str,
    right: bool | None,
    *,
    datasource: str = "emobench",
    cluster: str | None = None,
    sample: int = 0,
    score: float | None = None,
    votes: Votes = (),
) -> Result:
    return Result(f"{row}#{sample}", row, sample, datasource, cluster, right, score, votes)


def results(pattern: str, datasource: str = "emobench", clusters: str | None = None) -> list[Result]:
    """`+` right, `-` wrong, `?` no verdict; `clusters`: a letter a row."""
    meaning = {"+": True, "-": False, "?": None}
    return [
        result(f"{datasource}{row}", meaning[sign], datasource=datasource, cluster=clusters[row] if clusters else None)
        for row, sign in enumerate(pattern)
    ]


def evaluation(label: str, found: Sequence[Result], verdict: dict[str, Any] | None = None) -> Evaluation:
    verdict = verdict or {"kind": "rule"}
    return Evaluation(label, Path(label), f"models/{label}", "test.jsonl", verdict, {one.key: one for one in found})


def written(
    folder: Path, found: Sequence[Result], verdict: dict[str, Any] | None = None, name: str | None = None
) -> Path:
    folder.mkdir(parents=True)
    write_results(folder / "results.jsonl", found)
    about = {
        "name": name or folder.name,
        "model": "models/x",
        "data": "test.jsonl",
        "verdict": verdict or {"kind": "rule"},
    }
    (folder / "summary.json").write_text(json.dumps(about | summarise(found).to_json()))
    return folder


def only(comparison: Comparison) -> Contrast:
    (contrast,) = comparison.contrasts
    return contrast


# ── one evaluation ──


def test_summary_counts_by_data_set_and_overall() -> None:
    summary = summarise([*results("++-?", "b"), *results("+-", "a")])
    assert [row.name for row in summary.datasources] == ["a", "b"]
    a, b = summary.datasources
    assert (a.responses, a.n, a.right, a.missing) == (2, 2, 1, 0)
    assert (b.responses, b.n, b.right, b.missing) == (4, 3, 2, 1)
    overall = summary.overall
    assert (overall.responses, overall.n, overall.right, overall.missing, overall.items) == (6, 5, 3, 1, 6)
    assert overall.share is not None and overall.share.value == 3 / 5


def test_samples_of_a_prompt_and_rows_of_a_story_are_clusters() -> None:
    two_each = [result(str(row), True, sample=sample) for row in range(3) for sample in range(2)]
    assert (summarise(two_each).overall.items, summarise(two_each).overall.clusters) == (3, 3)
    stories = summarise(results("++++", clusters="aabb")).overall
    assert (stories.items, stories.clusters) == (4, 2)


def test_clusters_of_the_same_name_in_two_data_sets_are_two() -> None:
    assert summarise([*results("+-", "x", "aa"), *results("+-", "y", "aa")]).overall.clusters == 2


def test_a_cluster_that_is_called_like_a_row_is_not_that_row() -> None:
    assert summarise([result("7", True), result("8", True, cluster="7")]).overall.clusters == 2


def test_scores_have_a_mean_of_their_own_and_missing_is_neither() -> None:
    found = [result("1", None, score=0.25), result("2", None, score=0.75), result("3", None)]
    row = summarise(found).overall
    assert (row.n, row.share, row.scored, row.missing) == (0, None, 2, 1)
    assert row.score is not None and row.score.value == 0.5


def test_votes_are_counted_with_their_agreement() -> None:
    votes: list[Votes] = [(True, True), (True, True), (False, False), (True, False), (None, True)]
    row = summarise([result(str(number), True, votes=given) for number, given in enumerate(votes)]).overall
    assert row.votes is not None
    assert (row.votes.per_item, row.votes.votes, row.votes.unparsable, row.votes.items) == (2, 10, 1, 4)
    assert row.votes.kappa == pytest.approx((3 / 4 - 34 / 64) / (1 - 34 / 64))


def duels(outcomes: str, datasource: str = "emobench") -> list[Result]:
    meaning = {"w": (True, 1.0), "t": (None, 0.5), "l": (False, 0.0), "?": (None, None)}
    return [
        result(f"{datasource}{row}", meaning[sign][0], score=meaning[sign][1], datasource=datasource)
        for row, sign in enumerate(outcomes)
    ]


def test_duels_have_a_win_rate_and_a_sign_test_of_what_is_no_tie() -> None:
    row = summarise(duels("wwwwwlttt?"), pairwise=True).overall
    duel = row.duel
    assert duel is not None and row.share is None
    assert (duel.wins, duel.ties, duel.losses, row.missing) == (5, 3, 1, 1)
    assert duel.win_rate is not None and duel.win_rate.value == pytest.approx((5 + 1.5) / 9)
    assert (duel.test, duel.p) == ("exact sign test", pytest.approx(2 * (1 + 6) / 64))


def test_duels_are_corrected_across_data_sets() -> None:
    summary = summarise([*duels("wwwwww", "a"), *duels("wl", "b")], pairwise=True)
    found = [row.duel for row in summary.datasources]
    assert [duel and duel.p for duel in found] == [2 / 64, 1.0]
    assert [duel and duel.p_holm for duel in found] == [4 / 64, 1.0]
    assert summary.overall.duel is not None and summary.overall.duel.p_holm is None


def test_duels_that_are_all_ties_have_no_test() -> None:
    duel = summarise(duels("tt"), pairwise=True).overall.duel
    assert duel is not None and (duel.test, duel.p) == (None, None)


@pytest.mark.parametrize("pairwise", [False, True])
def test_summary_is_read_back_from_json(pairwise: bool) -> None:
    summary = summarise([*duels("wwlt?"), *results("+-", "x", "aa")], pairwise=pairwise)
    text = json.dumps(summary.to_json() | {"name": "base"}, allow_nan=False)
    assert Summary.from_json(json.loads(text)) == summary


def test_nothing_to_summarise_is_refused() -> None:
    with pytest.raises(ValueError, match="no results"):
        summarise([])


def test_markdown_of_a_summary() -> None:
    """Wilson of 2 of 4: 0.5 +- z sqrt(1/16 + z^2/64) / (1 + z^2/4) = 0.5 +- 0.350."""
    assert summary_markdown(summarise(results("++--?", "a|b"))) == (
        "| data set | responses | clusters | right | share (95 %) | no verdict |\n"
        "| :--- | ---: | ---: | ---: | ---: | ---: |\n"
        "| a\\|b | 5 | 5 | 2/4 | 50.0 % (15.0–85.0) | 1 |\n"
    )


def test_the_table_shows_overall_only_beside_several_data_sets() -> None:
    assert len(table(summarise(results("+-"))).rows) == 1
    assert [row[0] for row in table(summarise([*results("+-"), *results("+", "x")])).rows] == [
        "emobench",
        "x",
        "overall",
    ]


def test_scores_are_shown_where_they_say_more_than_right_and_wrong() -> None:
    restated = [result("1", True, score=1.0), result("2", False, score=0.0)]
    graded = [result("1", True, score=0.75), result("2", False, score=0.5)]
    assert "mean score (95 %)" not in table(summarise(restated)).columns
    assert "mean score (95 %)" in table(summarise(graded)).columns


def test_a_cell_that_a_row_has_not_is_a_dash() -> None:
    found = table(summarise([*results("+-", "a"), result("1", None, datasource="b", score=0.5)]))
    cells = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    assert cells[1]["right"] == "–" and cells[1]["mean score (95 %)"] == "0.500"
    assert cells[0]["right"] == "1/2"


# ── comparing ──


def test_contrast_by_hand() -> None:
    """Of eight pairs five are right only in the new one, one only in the baseline."""
    new, base = evaluation("new", results("+++++-+-")), evaluation("base", results("-----++-"))
    contrast = only(compare([base, new]))
    row = contrast.overall
    assert (contrast.evaluation, contrast.baseline, contrast.measure) == ("new", "base", "right")
    assert (row.pairs, row.left_out, row.only_evaluation, row.only_baseline) == (8, 0, 5, 1)
    assert (row.evaluation, row.baseline) == (6 / 8, 2 / 8)
    assert row.difference is not None and row.difference.value == 4 / 8
    assert (row.test, row.p) == ("exact McNemar", pytest.approx(2 * (1 + 6) / 64))


def test_clusters_are_tested_as_wholes() -> None:
    """Stories a and b gain 2 each, c gains one and loses one, d loses one: of +-2 +-2 +-1 four of eight reach 3."""
    new = evaluation("new", results("+++++-+-", clusters="aabbccdd"))
    base = evaluation("base", results("-----+++", clusters="aabbccdd"))
    row = only(compare([base, new])).overall
    assert row.clusters == 4
    assert row.test == "sign flips, exact"
    assert (row.only_evaluation, row.only_baseline) == (5, 2)
    assert row.difference is not None and row.difference.value == 3 / 8
    assert row.p == 4 / 8


def test_several_samples_of_a_prompt_are_one_cluster() -> None:
    def samples(rights: str) -> list[Result]:
        return [result(str(place // 2), sign == "+", sample=place % 2) for place, sign in enumerate(rights)]

    row = only(compare([evaluation("base", samples("------")), evaluation("new", samples("++++++"))])).overall
    assert (row.pairs, row.clusters, row.test, row.p) == (6, 3, "sign flips, exact", 2 / 8)


def test_a_pair_without_both_verdicts_is_left_out_and_counted() -> None:
    row = only(compare([evaluation("base", results("-?-+")), evaluation("new", results("+++?"))])).overall
    assert (row.pairs, row.left_out, row.only_evaluation) == (2, 2, 2)


def test_a_data_set_without_any_pair_has_no_numbers_and_no_part_in_holm() -> None:
    base = evaluation("base", [*results("------", "a"), *results("??", "b")])
    new = evaluation("new", [*results("++++++", "a"), *results("++", "b")])
    contrast = only(compare([base, new]))
    a, b = contrast.datasources
    assert (b.pairs, b.left_out, b.difference, b.test, b.p, b.p_holm) == (0, 2, None, None, None, None)
    assert a.p == a.p_holm == 2 / 64


def test_holm_is_across_the_data_sets_of_each_contrast() -> None:
    """6 : 0 discordant gives 2/64, 8 : 0 2/256, and 1 : 1 gives 1. Smallest times 3, next times 2."""
    base = [*results("-" * 6, "a"), *results("-" * 8, "b"), *results("-+", "c")]
    new = [*results("+" * 6, "a"), *results("+" * 8, "b"), *results("+-", "c")]
    first, second = compare([evaluation("base", base), evaluation("new", new), evaluation("again", base)]).contrasts
    assert [row.p for row in first.datasources] == [2 / 64, 2 / 256, 1.0]
    assert [row.p_holm for row in first.datasources] == [4 / 64, 6 / 256, 1.0]
    assert first.overall.p_holm is None
    assert [row.p_holm for row in second.datasources] == [1.0, 1.0, 1.0]


def test_scores_are_compared_by_sign_flips() -> None:
    """Differences 0.3, 0.2 and -0.1: of the totals +-6 +-4 +-2 0 0 (in tenths) four reach 4."""

    def scored(scores: Sequence[float]) -> list[Result]:
        return [result(str(row), None, score=score) for row, score in enumerate(scores)]

    contrast = only(compare([evaluation("b", scored([0.1, 0.2, 0.5])), evaluation("n", scored([0.4, 0.4, 0.4]))]))
    row = contrast.overall
    assert (contrast.measure, row.test, row.p, row.only_evaluation) == ("score", "sign flips, exact", 4 / 8, None)
    assert row.difference is not None and row.difference.value == pytest.approx(0.4 / 3)


def test_scores_beside_right_and_wrong_are_compared_where_they_say_more() -> None:
    def judged(score: float) -> list[Result]:
        return [result("1", True, score=1.0), result("2", True, score=score)]

    assert [one.measure for one in compare([evaluation("a", judged(1.0)), evaluation("b", judged(1.0))]).contrasts] == [
        "right"
    ]
    assert [one.measure for one in compare([evaluation("a", judged(1.0)), evaluation("b", judged(0.9))]).contrasts] == [
        "right",
        "score",
    ]


def test_duels_are_compared_by_their_win_rate() -> None:
    verdict = {"kind": "pairwise", "opponent": "base"}
    found = compare([evaluation("a", duels("lltl"), verdict), evaluation("b", duels("wwtw"), verdict)])
    contrast = only(found)
    assert (contrast.measure, contrast.overall.evaluation, contrast.overall.baseline) == ("score", 3.5 / 4, 0.5 / 4)
    assert found.evaluations[1].summary.overall.duel is not None
    assert "b less a: win rate" in [one.title for one in tables(found)]


def test_another_baseline_turns_the_difference_round() -> None:
    pair = [evaluation("a", results("++-")), evaluation("b", results("---"))]
    forward, back = only(compare(pair)).overall, only(compare(pair, baseline="b")).overall
    assert forward.difference is not None and back.difference is not None
    assert forward.difference.value == -2 / 3 and back.difference.value == 2 / 3
    assert (forward.only_evaluation, forward.only_baseline) == (back.only_baseline, back.only_evaluation)


def test_evaluations_without_verdicts_are_refused() -> None:
    with pytest.raises(DataError, match="without any verdict"):
        compare([evaluation("a", results("??")), evaluation("b", results("??"))])


signs = st.lists(
    st.tuples(st.sampled_from("+-?"), st.sampled_from("+-?"), st.sampled_from("abc"), st.sampled_from("xy")),
    min_size=1,
    max_size=25,
).filter(lambda rows: any(row[0] != "?" for row in rows))


def two(rows: Sequence[tuple[str, str, str, str]], order: Sequence[int]) -> list[Evaluation]:
    meaning = {"+": True, "-": False, "?": None}
    return [
        evaluation(
            label,
            [result(str(at), meaning[rows[at][side]], datasource=rows[at][3], cluster=rows[at][2]) for at in order],
        )
        for side, label in enumerate(("a", "b"))
    ]


@settings(max_examples=10, deadline=None)
@given(signs, st.randoms(use_true_random=False))
def test_the_order_of_rows_has_no_effect(rows: list[tuple[str, str, str, str]], random: Any) -> None:
    order = list(range(len(rows)))
    first = compare(two(rows, order), resamples=200)
    random.shuffle(order)
    assert compare(two(rows, order), resamples=200).contrasts == first.contrasts


@settings(max_examples=10, deadline=None)
@given(signs)
def test_an_evaluation_does_not_differ_from_itself(rows: list[tuple[str, str, str, str]]) -> None:
    one = two(rows, range(len(rows)))[0]
    contrast = only(compare([one, replace(one, label="again")], resamples=200))
    for row in (*contrast.datasources, contrast.overall):
        if row.difference is not None:
            assert row.difference.value == 0 and row.p == 1 and row.bootstrap_p in (None, 1.0)
            assert (row.only_evaluation, row.only_baseline) == (0, 0)


# ── files ──


def test_comparison_is_read_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = written(tmp_path / "base", [*results("--+-", clusters="aabb"), *results("??", "x")])
    new = written(tmp_path / "new", [*results("+++-", clusters="aabb"), *results("+?", "x")])
    assert run(["--compare", str(base), str(new)]) == 0
    folder = tmp_path / "comparisons" / "base-vs-new"
    comparison = read_comparison(folder)
    assert comparison == read_comparison(folder / "comparison.json")
    assert comparison == compare(load_evaluations([base, new]))
    assert (folder / "comparison.md").read_text() == markdown(comparison)
    assert not list(folder.glob("*.partial"))


def test_options_reach_the_comparison(tmp_path: Path) -> None:
    folders = [str(written(tmp_path / name, results(rows))) for name, rows in (("a", "+-+"), ("b", "++-"))]
    out = tmp_path / "out"
    options = ["--baseline", folders[1], "--seed", "5", "--confidence", "0.9", "--resamples", "1234"]
    run(["--compare", *folders, "--output", str(out), *options])
    found = read_comparison(out)
    assert (found.baseline, found.seed, found.confidence, found.resamples) == ("b", 5, 0.9, 1234)
    assert only(found).evaluation == "a"


def test_page_says_what_was_tested_and_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        str(written(tmp_path / name, [*results(rows, "tombench", "aabb"), *results(rows, "x")]))
        for name, rows in (("base", "----"), ("new", "+++-"))
    ]
    run(["--compare", *folders, "--output", str(tmp_path / "out")])
    page = (tmp_path / "out" / "comparison.md").read_text()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    header = next(line for line in lines if "only one right" in line)
    rows = {line[0]: dict(zip(header, line, strict=True)) for line in lines[lines.index(header) + 2 :]}
    assert rows["tombench"]["test"] == "sign flips, exact" and rows["x"]["test"] == "exact McNemar"
    assert rows["x"]["only one right"] == "3:0" and rows["x"]["p"] == "0.250" and rows["x"]["p (Holm)"] == "0.500"
    assert rows["x"]["new"] == "75.0 %" and rows["x"]["base"] == "0.0 %"
    assert rows["x"]["points (95 %)"].startswith("+75.0 (")
    assert rows["overall"]["p (Holm)"] == "–"
    assert str(tmp_path / "out") in capsys.readouterr().out


@pytest.mark.parametrize("width", ["60", "200"])
def test_what_is_printed_can_be_read_on_any_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    folders = [str(written(tmp_path / name, results(rows))) for name, rows in (("base", "----"), ("new", "+++-"))]
    run(["--compare", *folders, "--output", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert any("exact McNemar" in line and "75.0 %" in line and "3:0" in line for line in lines)
    assert any("no verdict" in line for line in lines) is False


def test_rows_of_one_cluster_alone_have_no_interval_but_a_page() -> None:
    found = compare([evaluation("a", results("--", clusters="aa")), evaluation("b", results("++", clusters="aa"))])
    assert "| +100.0 |" in markdown(found)


def cells_of(found: Table) -> list[list[tuple[str, str]]]:
    return [list(zip(found.columns, row, strict=True)) for row in found.rows]


@pytest.mark.parametrize("labels", [("test", "p"), ("pairs", "data set"), ("clusters", "only one right")])
def test_an_evaluation_may_be_called_like_a_column(labels: tuple[str, str]) -> None:
    base, new = evaluation(labels[0], results("+---")), evaluation(labels[1], results("++++"))
    _, found = tables(compare([base, new], resamples=1000))
    assert len(found.columns) == 9
    (row,) = cells_of(found)
    # The columns beside them keep what is theirs: three pairs of four differ, and p = 2 / 2^3.
    assert row[:3] == [("data set", "emobench"), ("pairs", "4"), ("clusters", "4")]
    assert row[3:5] == [(labels[1], "100.0 %"), (labels[0], "25.0 %")]
    assert row[-3:] == [("only one right", "3:0"), ("p", "0.250"), ("test", "exact McNemar")]
    assert found.numbers == (False, *[True] * 7, False)


def test_a_data_set_called_overall_has_one_row_an_evaluation() -> None:
    """One of two right in x, both in the data set `overall`: three of four together."""
    pair = [evaluation(label, [*results("+-", "x"), *results("++", "overall")]) for label in ("a", "b")]
    alone, _ = tables(compare(pair, resamples=1000))
    shown = [(cells["data set"], cells["evaluation"], cells["right"]) for cells in map(dict, cells_of(alone))]
    assert shown == [
        ("overall", "a", "2/2"),
        ("overall", "b", "2/2"),
        ("x", "a", "1/2"),
        ("x", "b", "1/2"),
        ("overall", "a", "3/4"),
        ("overall", "b", "3/4"),
    ]


def test_where_every_cluster_differs_alike_no_interval_is_shown_and_a_note_says_why() -> None:
    found = compare([evaluation("a", results("+++")), evaluation("b", results("---"))], resamples=1000)
    cells = dict(cells_of(tables(found)[1])[0])
    assert (cells["points (95 %)"], cells["p"]) == ("-100.0", "0.250")
    assert [note for note in notes(found) if "without an interval" in note]
    mixed = compare([evaluation("a", results("+++")), evaluation("b", results("-+-"))], resamples=1000)
    assert dict(cells_of(tables(mixed)[1])[0])["points (95 %)"].startswith("-66.7 (")
    assert not [note for note in notes(mixed) if "without an interval" in note]


def test_scores_that_are_all_the_same_have_no_interval() -> None:
    found = table(summarise([result(str(row), None, score=0.5) for row in range(3)]))
    assert dict(cells_of(found)[0])["mean score (95 %)"] == "0.500"


def test_labels_that_are_not_unique_become_folders(tmp_path: Path) -> None:
    folders = [written(tmp_path / where, results("+-"), name="same") for where in ("a/x", "b/y", "c/y")]
    assert [one.label for one in load_evaluations(folders)] == ["x", *(str(folder) for folder in folders[1:])]


def test_a_name_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = written(tmp_path / "a", results("+-"), name="../../escape [bold]")
    run(["--compare", str(first), str(written(tmp_path / "b", results("+-")))])
    (made,) = (tmp_path / "comparisons").iterdir()
    assert (made / "comparison.json").is_file()


def test_common_rows_only_where_asked_for(tmp_path: Path) -> None:
    folders = [written(tmp_path / name, results(rows)) for name, rows in (("base", "--"), ("new", "+++-"))]
    loaded = load_evaluations(folders)
    with pytest.raises(DataError, match=r"new has 2 responses \(of 4\).*`emobench2#0`.*--common"):
        compare(loaded)
    found = compare(loaded, common=True)
    assert [one.left_out for one in found.evaluations] == [0, 2]
    assert found.evaluations[1].summary.overall.responses == 2
    assert only(found).overall.pairs == 2
    assert "2 responses of new were left out" in " ".join(notes(found))


# ── refused, a paragraph each ──


def refusal(argv: Sequence[str | Path]) -> str:
    with pytest.raises(UserError) as caught:
        run([str(word) for word in argv])
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 2
    return message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--confidence", "95"], "--confidence: 95 is not a number between 0 and 1"),
        (["--confidence", "high"], "--confidence: high is not a number between 0 and 1"),
        (["--seed", "-1"], "--seed"),
        (["--resamples", "10"], "10 is not a whole number from 1000"),
        (["--baseline", "c"], "The baseline c is none of the evaluations, which are a, b"),
        (["--colour"], "--colour"),
    ],
)
def test_options_are_checked(tmp_path: Path, options: list[str], said: str) -> None:
    folders = [written(tmp_path / name, results("+-")) for name in ("a", "b")]
    assert said in refusal(["--compare", *folders, *options])


def test_one_evaluation_is_not_a_comparison(tmp_path: Path) -> None:
    assert "two evaluations or more" in refusal(["--compare", written(tmp_path / "a", results("+-"))])


def test_the_same_folder_twice_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", results("+-"))
    assert "given 2 times" in refusal(["--compare", folder, folder / ".." / "a"])


def test_verdicts_of_another_kind_or_judge_are_refused(tmp_path: Path) -> None:
    rule = written(tmp_path / "rule", results("+-"))
    judge = written(tmp_path / "judge", results("+-"), JUDGE)
    lenient = written(tmp_path / "lenient", results("+-"), JUDGE | {"prompt": "lenient"})
    assert "kind rule and judge" in refusal(["--compare", rule, judge])
    message = refusal(["--compare", judge, lenient])
    assert "prompt strict and lenient" in message and "qwen" not in message


def test_an_unfinished_evaluation_is_named(tmp_path: Path) -> None:
    finished, begun = written(tmp_path / "a", results("+-")), tmp_path / "b"
    begun.mkdir()
    assert f"{begun / 'results.jsonl'} cannot be read" in refusal(["--compare", finished, begun])
    write_results(begun / "results.jsonl", results("+-"))
    assert f"{begun / 'summary.json'} cannot be read" in refusal(["--compare", finished, begun])


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": "a", "model": "m", "data": "d", "verdict": "rule"}'])
def test_a_summary_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    folders = [written(tmp_path / name, results("+-")) for name in ("a", "b")]
    (folders[1] / "summary.json").write_text(text)
    assert f"{folders[1] / 'summary.json'} is not the summary" in refusal(["--compare", *folders])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"score": float("nan")}, "`score` is nan"),
        ({"score": "good"}, "`score` is 'good'"),
        ({"score": True}, "`score` is True"),
        ({"right": 1}, "`right` is 1"),
    ],
)
def test_a_result_that_makes_no_sense_is_named_by_its_line(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    first, second = (written(tmp_path / name, results("+-")) for name in ("a", "b"))
    rows = results("+-")
    lines = [json.dumps(asdict(rows[0])), json.dumps(asdict(rows[1]) | changed)]
    (second / "results.jsonl").write_text("\n".join(lines) + "\n")
    assert f"results.jsonl, line 2: {said}" in refusal(["--compare", first, second])


def test_results_that_are_no_text_are_named(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, results("+-")) for name in ("a", "b"))
    (second / "results.jsonl").write_bytes(b"\xff\xfe\n")
    message = refusal(["--compare", first, second])
    assert str(second / "results.jsonl") in message and "UTF-8" in message


def test_no_rows_and_repeated_keys_are_refused(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, results("+-")) for name in ("a", "b"))
    write_results(second / "results.jsonl", results("+-") * 2)
    assert "2 keys more than once, such as `emobench0#0`" in refusal(["--compare", first, second])
    write_results(second / "results.jsonl", [])
    assert "has no rows" in refusal(["--compare", first, second])


def test_rows_of_other_data_under_the_same_keys_are_refused(tmp_path: Path) -> None:
    base = written(tmp_path / "base", results("+-"))
    moved = written(tmp_path / "moved", [replace(one, datasource="tombench") for one in results("+-")])
    assert "datasource emobench and tombench" in refusal(["--compare", base, moved])
    regrouped = written(tmp_path / "regrouped", results("+-", clusters="ab"))
    assert "cluster None and a" in refusal(["--compare", base, regrouped])


def test_other_questions_under_the_same_keys_are_refused(tmp_path: Path) -> None:
    folders = [written(tmp_path / name, results("+-")) for name in ("a", "b")]

    def ask(folder: Path, question: str) -> None:
        rows = [{"key": one.key, "question": question, "reference": "42"} for one in results("+-")]
        (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    ask(folders[0], "Why?")
    ask(folders[1], "How?")
    assert "Row `emobench0#0` is not the same in a and b" in refusal(["--compare", *folders])
    ask(folders[1], "Why?")
    assert run(["--compare", *map(str, folders), "--output", str(tmp_path / "out")]) == 0
    (folders[1] / "responses.jsonl").write_text('{"key": "1"}\n')
    assert "responses.jsonl has a row without 'question'" in refusal(["--compare", *folders])


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    folders = [written(tmp_path / name, results("+-", name)) for name in ("a", "b")]
    assert "no row in common" in refusal(["--compare", *folders, "--common"])


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    folders = [written(tmp_path / name, results("+-")) for name in ("a", "b")]
    (tmp_path / "file").write_text("")
    assert "--output: " in refusal(["--compare", *folders, "--output", tmp_path / "file"])


@pytest.mark.parametrize("text", [None, "{", "{}", '{"evaluations": [], "contrasts": []}', "[]"])
def test_a_file_that_is_no_comparison_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(DataError, match=r"comparison\.json (cannot be read|is not a comparison)"):
        read_comparison(tmp_path)


def test_a_comparison_without_a_kind_of_verdict_is_named(tmp_path: Path) -> None:
    comparison = compare([evaluation("a", results("+-")), evaluation("b", results("--"))], resamples=1000)
    (tmp_path / "comparison.json").write_text(json.dumps(comparison.to_json() | {"verdict": {}}))
    with pytest.raises(DataError, match=r"comparison\.json is not a comparison"):
        read_comparison(tmp_path)


def test_a_row_keeps_its_fields_in_json() -> None:
    """What the report and others rely on by name."""
    row = summarise(results("+-")).to_json()["overall"]
    assert set(row) == set(SummaryRow.__dataclass_fields__)
