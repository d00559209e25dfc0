"""Several runs side by side: names that tell them apart, final figures with intervals, options that differ."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from scipy import stats

from openrlhf_maestro.evaluation.loading import refuse_repeated
from openrlhf_maestro.report.held_out import OVERALL, AccuracyRow, Evaluation, accuracy_rows, ends
from openrlhf_maestro.report.run import ReportError, Run, Series, flat, load_run
from openrlhf_maestro.report.summary import per_token, run_name, timing

MAX_RUNS = 8
# Steps that a final figure is the mean of.
LAST_STEPS = 10
CONFIDENCE = 0.95
# They differ by nature.
OWN_OPTIONS = ("run.name", "run.dir")


@dataclass(frozen=True)
class Mean:
    """Mean of the last steps of a metric with its 95 % interval (Student's t over the steps); NaN without any."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Contender:
    """One of the runs, under the name it has on the page, with its final figures."""

    name: str
    colour: str
    run: Run
    accuracy: Mapping[str, AccuracyRow]  # by data set, and overall
    reward: Mean
    length: Mean
    truncated: Mean
    kl: Mean
    step_s: float
    token_ms: float

    def final(self, datasource: str) -> Evaluation | None:
        """Accuracy on this data set at the run's last evaluation; None where it was not among its data sets."""
        found = ends(list(self.accuracy.values()))
        row = self.accuracy.get(datasource)
        return row.at(found[1]) if row and found else None


def contenders(folders: Sequence[Path]) -> list[Contender]:
    """The runs in the order given.

    Raises:
        ReportError: one of them is no run directory, or there are more than MAX_RUNS.
        UserError: one is given twice.
    """
    if len(folders) > MAX_RUNS:
        raise ReportError(f"{len(folders)} runs do not fit on one page. Compare at most {MAX_RUNS} at a time.")
    refuse_repeated(folders, "run")
    runs = [load_run(folder) for folder in folders]
    names = distinct_names([run_name(run) for run in runs], folders)
    return [_contender(name, f"r{place}", run) for place, (name, run) in enumerate(zip(names, runs, strict=True))]


def distinct_names(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The names, those that several runs share with the shortest end of their folder's path that tells them apart."""
    shared = {name for name, times in Counter(names).items() if times > 1}
    ends = _path_ends([folder.resolve() for folder in folders])
    return [f"{name} ({end})" if name in shared else name for name, end in zip(names, ends, strict=True)]


def _path_ends(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as make all of them different. The paths differ."""
    for parts in count(1):
        ends = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(ends)) == len(ends):
            return ends
    raise AssertionError


def _contender(name: str, colour: str, run: Run) -> Contender:
    times = timing(run)
    return Contender(
        name=name,
        colour=colour,
        run=run,
        accuracy={row.datasource: row for row in accuracy_rows(run)},
        reward=mean_of_last(run.series("reward/scalar_mean")),
        length=mean_of_last(run.series("rollout/response_length_mean")),
        truncated=mean_of_last(run.series("rollout/truncated_rate")),
        kl=mean_of_last(run.series("policy/kl")),
        step_s=times.median_total,
        token_ms=per_token(run, times).median_total,
    )


def mean_of_last(series: Series) -> Mean:
    """Mean of the last LAST_STEPS values. The interval takes the steps as independent; none for a single one."""
    values = series.finite()[-LAST_STEPS:]
    if not values:
        return Mean()
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Mean(mean)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(mean, mean - half, mean + half)


def datasources(runs: Sequence[Contender]) -> list[str]:
    """Data sets that a run was evaluated on, in the order of its table; all of them together last."""
    found = dict.fromkeys(name for run in runs for name in run.accuracy)
    return sorted(found, key=lambda name: name == OVERALL)


def headline(runs: Sequence[Contender]) -> str | None:
    """What the final accuracy is of: all data sets together, or the only one there is; None where there is neither."""
    found = datasources(runs)
    return found[-1] if OVERALL in found or len(found) == 1 else None


def same_datasources(runs: Sequence[Contender]) -> bool:
    """Whether all runs that were evaluated were evaluated on the same ones, so that `overall` is of the same."""
    return len({frozenset(run.accuracy) - {OVERALL} for run in runs if run.accuracy}) < 2


def differing_options(runs: Sequence[Contender]) -> dict[str, list[Any]]:
    """Options that are not the same in all runs, with the value of each; None where a run has no such option."""
    options = [dict(flat(contender.run.config)) for contender in runs]
    names = sorted({name for values in options for name in values} - set(OWN_OPTIONS))
    found = {name: [values.get(name) for values in options] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}
