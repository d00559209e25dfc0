"""What the evaluations during training came to, by data set: from `eval/*` of metrics.jsonl."""

from __future__ import annotations

import math
from dataclasses import dataclass

from openrlhf_maestro.evaluation.accuracy import Accuracy
from openrlhf_maestro.report.run import Run, Series

OVERALL = "overall"


@dataclass(frozen=True)
class Evaluation:
    """Share of held-out responses that the rule accepts, after `step` steps; n is 0 where it was not logged."""

    step: int
    share: float
    n: int = 0

    @property
    def k(self) -> int:
        """Right responses."""
        return round(self.share * self.n)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the share; None without n."""
        return Accuracy(self.k, self.n).interval() if self.n else None


@dataclass(frozen=True)
class AccuracyRow:
    """Held-out accuracy of one data set: every evaluation of the run, first to last."""

    datasource: str
    evaluations: list[Evaluation]

    @property
    def first(self) -> Evaluation:
        return self.evaluations[0]

    @property
    def last(self) -> Evaluation:
        return self.evaluations[-1]

    @property
    def change(self) -> float:
        """Last minus first, as a share; NaN after a single evaluation."""
        return self.last.share - self.first.share if len(self.evaluations) > 1 else math.nan


@dataclass(frozen=True)
class ScoreRow:
    """Mean score of one data set's held-out responses at every evaluation, and how many there were; 0: not logged."""

    datasource: str
    scores: Series
    sizes: list[int]


def accuracy_rows(run: Run) -> list[AccuracyRow]:
    """One row a data set, sorted, and the overall one last: logged, or the sum of the others where all have n."""
    rows = []
    for datasource in run.names_between("eval/", "/accuracy"):
        shares, sizes = run.series(f"eval/{datasource}/accuracy"), run.series(f"eval/{datasource}/n")
        evaluations = [
            Evaluation(step, share, 0 if math.isnan(n) else int(n))
            for step, share, n in zip(shares.steps, shares.values, sizes.at(shares.steps), strict=True)
            if not math.isnan(share)
        ]
        if evaluations:
            rows.append(AccuracyRow(datasource, evaluations))
    families = sorted((row for row in rows if row.datasource != OVERALL), key=lambda row: row.datasource)
    overall = next((row for row in rows if row.datasource == OVERALL), None) or _pooled(families)
    return [*families, overall] if overall else families


def _pooled(rows: list[AccuracyRow]) -> AccuracyRow | None:
    if len(rows) < 2:
        return None
    by_step: dict[int, list[Evaluation]] = {}
    for row in rows:
        for evaluation in row.evaluations:
            by_step.setdefault(evaluation.step, []).append(evaluation)
    pooled = [
        Evaluation(step, sum(part.k for part in parts) / sum(part.n for part in parts), sum(part.n for part in parts))
        for step, parts in sorted(by_step.items())
        if len(parts) == len(rows) and all(part.n for part in parts)
    ]
    return AccuracyRow(OVERALL, pooled) if pooled else None


def missing_rates(run: Run) -> dict[str, float]:
    """Share of each data set's responses without a verdict at its last evaluation, where it is not 0."""
    rates = {
        name: run.series(f"eval/{name}/missing_rate").finite() for name in run.names_between("eval/", "/missing_rate")
    }
    return {name: values[-1] for name, values in rates.items() if values and values[-1] > 0}


def score_rows(run: Run) -> list[ScoreRow]:
    """One row a data set whose scores say more than its accuracy, sorted, `overall` last."""
    rows = []
    for datasource in sorted(run.names_between("eval/", "/score"), key=lambda name: (name == OVERALL, name)):
        scores, sizes = run.series(f"eval/{datasource}/score"), run.series(f"eval/{datasource}/n")
        if scores and scores != run.series(f"eval/{datasource}/accuracy"):
            rows.append(ScoreRow(datasource, scores, [0 if math.isnan(n) else int(n) for n in sizes.at(scores.steps)]))
    return rows
