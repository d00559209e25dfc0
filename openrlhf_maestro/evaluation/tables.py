"""What the verdicts of one evaluation come to: k of n, scores and votes, by data set and overall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from openrlhf_maestro.evaluation.results import Result
from openrlhf_maestro.evaluation.statistics import (
    RESAMPLES,
    Agreement,
    Estimate,
    agreement,
    holm,
    mean_interval,
    paired_test,
    share_interval,
)

OVERALL = "overall"
NONE = "–"

Cluster = tuple[str, str, str]


@dataclass(frozen=True)
class Duel:
    """Verdicts of a pairwise evaluation, seen from the evaluated model."""

    wins: int
    ties: int
    losses: int
    win_rate: Estimate | None  # a tie is half a win
    test: str | None  # of wins against losses; ties say nothing
    p: float | None
    p_holm: float | None  # across the data sets; None for all of them together


@dataclass(frozen=True)
class SummaryRow:
    """One data set, or all of them. An estimate is None, or has no bounds, where nothing can be said."""

    name: str
    responses: int
    items: int  # prompts
    clusters: int  # what is independent: prompts, or the groups of prompts that belong together
    n: int  # responses that are right or wrong
    right: int
    share: Estimate | None  # right / n with Wilson's interval at the effective size
    scored: int
    score: Estimate | None  # mean of the scores, bootstrap interval
    missing: int  # responses with neither
    votes: Agreement | None
    duel: Duel | None  # pairwise evaluations only


@dataclass(frozen=True)
class Summary:
    """One evaluation."""

    datasources: tuple[SummaryRow, ...]  # sorted by name
    overall: SummaryRow  # every response counts the same, whatever its data set
    confidence: float
    seed: int
    resamples: int

    def to_json(self) -> dict[str, Any]:
        """Plain objects, lists and numbers; None where there is no number."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Summary:
        """Reads `to_json`; other keys are left alone. Raises KeyError or TypeError for what it did not write."""
        rows = tuple(_row_from_json(row) for row in data["datasources"])
        return cls(rows, _row_from_json(data["overall"]), data["confidence"], data["seed"], data["resamples"])


def cluster_of(result: Result) -> Cluster:
    """What the result belongs to: its rows' cluster, else its prompt, whose samples are never independent."""
    if result.cluster is not None:
        return result.datasource, "cluster", result.cluster
    return result.datasource, "id", result.id


def summarise(
    results: Sequence[Result],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
    pairwise: bool = False,
) -> Summary:
    """The table of an evaluation.

    Args:
        results: of all its data sets.
        confidence: of the intervals.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        pairwise: the results are duels: `right` True is a win, False a loss, and None with the score 0.5 a tie.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError("no results to summarise")
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.datasource, []).append(result)

    def row(name: str, part: Sequence[Result]) -> SummaryRow:
        return _row(name, part, confidence=confidence, seed=seed, resamples=resamples, pairwise=pairwise)

    rows = _with_holm([row(name, part) for name, part in sorted(grouped.items())])
    return Summary(rows, row(OVERALL, results), confidence, seed, resamples)


def _row(
    name: str, results: Sequence[Result], *, confidence: float, seed: int, resamples: int, pairwise: bool
) -> SummaryRow:
    decided = [(result.right, cluster_of(result)) for result in results if result.right is not None]
    scored = [(result.score, cluster_of(result)) for result in results if result.score is not None]
    share = share_interval(*_columns(decided), confidence) if decided and not pairwise else None
    score = mean_interval(*_columns(scored), confidence=confidence, resamples=resamples, seed=seed) if scored else None
    return SummaryRow(
        name=name,
        responses=len(results),
        items=len({(result.datasource, result.id) for result in results}),
        clusters=len({cluster_of(result) for result in results}),
        n=len(decided),
        right=sum(bool(right) for right, _ in decided),
        share=share,
        scored=len(scored),
        score=score,
        missing=sum(result.right is None and result.score is None for result in results),
        votes=agreement([result.votes for result in results]),
        duel=_duel(decided, len(scored), score, seed, resamples) if pairwise else None,
    )


def _with_holm(rows: Sequence[SummaryRow]) -> tuple[SummaryRow, ...]:
    adjusted = iter(holm([row.duel.p for row in rows if row.duel and row.duel.p is not None]))
    return tuple(
        replace(row, duel=replace(row.duel, p_holm=next(adjusted))) if row.duel and row.duel.p is not None else row
        for row in rows
    )


def _columns(pairs: Sequence[tuple[Any, Cluster]]) -> tuple[list[float], list[Cluster]]:
    return [float(value) for value, _ in pairs], [cluster for _, cluster in pairs]


def _duel(
    decided: Sequence[tuple[bool | None, Cluster]], judged: int, rate: Estimate | None, seed: int, resamples: int
) -> Duel:
    wins = sum(bool(won) for won, _ in decided)
    tested = None
    if decided:
        signs = [1.0 if won else -1.0 for won, _ in decided]
        clusters = [cluster for _, cluster in decided]
        tested = paired_test(signs, clusters, counted="exact sign test", resamples=resamples, seed=seed)
    return Duel(
        wins=wins,
        ties=judged - len(decided),
        losses=len(decided) - wins,
        win_rate=rate,
        test=tested.test if tested else None,
        p=tested.p if tested else None,
        p_holm=None,
    )


def _row_from_json(data: Mapping[str, Any]) -> SummaryRow:
    estimates = {name: _estimate(data[name]) for name in ("share", "score")}
    votes = Agreement(**data["votes"]) if data["votes"] is not None else None
    duel = None
    if data["duel"] is not None:
        duel = Duel(**(data["duel"] | {"win_rate": _estimate(data["duel"]["win_rate"])}))
    return SummaryRow(**{**data, **estimates, "votes": votes, "duel": duel})


def _estimate(data: Mapping[str, Any] | None) -> Estimate | None:
    return Estimate(**data) if data is not None else None


# ── as text ──


def percent(value: float | None) -> str:
    """12.3 %"""
    return NONE if value is None else f"{100 * value:.1f} %"


def share_text(estimate: Estimate | None) -> str:
    """92.5 % (89.9–94.5)"""
    if estimate is None:
        return NONE
    if estimate.low is None or estimate.high is None:
        return percent(estimate.value)
    return f"{percent(estimate.value)} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def score_text(estimate: Estimate | None) -> str:
    """0.512 (0.480–0.540)"""
    if estimate is None:
        return NONE
    if estimate.low is None or estimate.high is None or is_point(estimate):
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f}–{estimate.high:.3f})"


def is_point(estimate: Estimate) -> bool:
    """Whether its bounds say nothing: every cluster is alike, so that any resample is the same."""
    return estimate.low is not None and estimate.high is not None and estimate.high - estimate.low < 1e-9


def p_text(p: float | None) -> str:
    """0.03, or < 0.001"""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


_WORDS = frozenset({"data set", "evaluation", "test"})


@dataclass(frozen=True)
class Table:
    """A table of texts. `columns` are titles, and two may be the same; `numbers` says which to set flush right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[bool, ...]


def shown_rows(summary: Summary) -> tuple[SummaryRow, ...]:
    """The data sets, and the overall row where it is not the only one once more."""
    return (*summary.datasources, summary.overall) if len(summary.datasources) > 1 else summary.datasources


def table(summary: Summary, title: str = "") -> Table:
    """The summary as texts; columns without any content are left out."""
    cells = [
        {"data set": row.name, "responses": str(row.responses), "clusters": str(row.clusters)}
        | summary_cells(row, summary.confidence)
        for row in shown_rows(summary)
    ]
    return table_of(title, cells)


def summary_cells(row: SummaryRow, confidence: float) -> dict[str, str]:
    """What was found in a row, by the name of the column."""
    level = f"{100 * confidence:g} %"
    cells = {}
    if row.duel:
        cells = {
            "win / tie / loss": f"{row.duel.wins} / {row.duel.ties} / {row.duel.losses}",
            f"win rate ({level})": share_text(row.duel.win_rate),
            "p": p_text(row.duel.p),
            "p (Holm)": p_text(row.duel.p_holm),
            "test": row.duel.test or NONE,
        }
    elif row.n:
        cells = {"right": f"{row.right}/{row.n}", f"share ({level})": share_text(row.share)}
    # A rule's scores are right and wrong once more.
    restated = row.share and row.score and row.scored == row.n and row.score.value == row.share.value
    if row.score and not row.duel and not restated:
        cells[f"mean score ({level})"] = score_text(row.score)
    if row.missing:
        cells["no verdict"] = str(row.missing)
    if row.votes:
        cells["Fleiss kappa"] = NONE if row.votes.kappa is None else f"{row.votes.kappa:.3f}"
        cells["unparsable votes"] = f"{row.votes.unparsable}/{row.votes.votes}"
    return cells


def table_of(title: str, cells: Sequence[Mapping[str, str]], titles: Mapping[str, str] | None = None) -> Table:
    """A table with every column that some row has, in the order of the fullest row.

    Args:
        title: of the table.
        cells: for each row the text of a column by the column's key.
        titles: of those columns whose title is not their key: a user's own names, which may be any.
    """
    longest = sorted(cells, key=len, reverse=True)
    keys = tuple(dict.fromkeys(key for row in longest for key in row))
    columns = tuple((titles or {}).get(key, key) for key in keys)
    rows = tuple(tuple(row.get(key, NONE) for key in keys) for row in cells)
    return Table(title, columns, rows, tuple(key not in _WORDS for key in keys))


def to_markdown(found: Table) -> str:
    """A GitHub table, under its title if it has one."""
    rules = ["---:" if numbers else ":---" for numbers in found.numbers]
    lines = [_line(found.columns), _line(rules), *(_line(row) for row in found.rows)]
    return (f"**{_escaped(found.title)}**\n\n" if found.title else "") + "\n".join(lines) + "\n"


def markdown(summary: Summary, title: str = "") -> str:
    """The table of one evaluation as Markdown."""
    return to_markdown(table(summary, title))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
