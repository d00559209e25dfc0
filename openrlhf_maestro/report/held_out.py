"""What the evaluations during training came to, by data set: from `eval/*` of metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from openrlhf_maestro.report.run import Run, Series

OVERALL = "overall"
BOUNDS = ("accuracy_low", "accuracy_high")


@dataclass(frozen=True)
class Evaluation:
    """Share of held-out responses that are right, after `step` steps; n is 0 where it was not logged.

    `low` and `high`: the logged 95 % interval, which knows which responses belong together; NaN where there is none.
    """

    step: int
    share: float
    n: int = 0
    low: float = math.nan
    high: float = math.nan

    @property
    def k(self) -> int:
        """Right responses."""
        return round(self.share * self.n)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The logged one, else Wilson's (1927) of k of n independent responses; None without n."""
        if not math.isnan(self.low) and not math.isnan(self.high):
            return self.low, self.high
        if not self.n:
            return None
        bounds = binomtest(self.k, self.n).proportion_ci(0.95, method="wilson")
        return float(bounds.low), float(bounds.high)


@dataclass(frozen=True)
class AccuracyRow:
    """Held-out accuracy of one data set: every evaluation of the run, first to last."""

    datasource: str
    evaluations: list[Evaluation]

    @property
    def steps(self) -> list[int]:
        return [evaluation.step for evaluation in self.evaluations]

    @property
    def first(self) -> Evaluation:
        return self.evaluations[0]

    @property
    def last(self) -> Evaluation:
        return self.evaluations[-1]

    def at(self, step: int) -> Evaluation | None:
        """The evaluation after `step` steps; None where this data set had none."""
        return next((evaluation for evaluation in self.evaluations if evaluation.step == step), None)

    def change(self, first: int, last: int) -> float:
        """From the evaluation after `first` steps to that after `last`, as a share; NaN where there are not two."""
        before, after = self.at(first), self.at(last)
        return after.share - before.share if before and after and before is not after else math.nan


@dataclass(frozen=True)
class ScoreRow:
    """Mean score of one data set's held-out responses at every evaluation, and how many there were; NaN: not logged."""

    datasource: str
    scores: Series
    sizes: Series

    @property
    def steps(self) -> list[int]:
        return self.scores.steps

    def at(self, step: int) -> float:
        """The score after `step` steps; NaN where there is none."""
        return self.scores.at([step])[0]

    def size(self, step: int) -> float:
        """How many responses it is of."""
        return self.sizes.at([step])[0]


def accuracy_rows(run: Run) -> list[AccuracyRow]:
    """One row a data set, sorted, and the overall one last: logged, or the sum of the others where all have n."""
    rows = []
    for datasource in run.names_between("eval/", "/accuracy"):
        shares = run.series(f"eval/{datasource}/accuracy")
        beside = [run.series(f"eval/{datasource}/{key}").at(shares.steps) for key in ("n", *BOUNDS)]
        evaluations = [
            Evaluation(step, share, 0 if math.isnan(n) else int(n), low, high)
            for step, share, n, low, high in zip(shares.steps, shares.values, *beside, strict=True)
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


def ends(rows: Sequence[AccuracyRow | ScoreRow]) -> tuple[int, int] | None:
    """The steps of the first and the last evaluation of any of the rows; None without any."""
    steps = [step for row in rows for step in row.steps]
    return (min(steps), max(steps)) if steps else None


def missing_rates(run: Run, step: int) -> dict[str, float]:
    """Share of each data set's responses without a verdict at the evaluation after `step` steps, where it is not 0."""
    rates = {
        name: run.series(f"eval/{name}/missing_rate").at([step])[0]
        for name in run.names_between("eval/", "/missing_rate")
    }
    return {name: rate for name, rate in rates.items() if rate > 0}


def score_rows(run: Run) -> list[ScoreRow]:
    """One row a data set whose scores say more than its accuracy, sorted, `overall` last."""
    rows = []
    for datasource in sorted(run.names_between("eval/", "/score"), key=lambda name: (name == OVERALL, name)):
        scores, sizes = run.series(f"eval/{datasource}/score"), run.series(f"eval/{datasource}/n")
        if scores and scores != run.series(f"eval/{datasource}/accuracy"):
            rows.append(ScoreRow(datasource, scores, sizes))
    return rows
