"""Curves of several runs over each other, one panel a quantity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openrlhf_maestro.report.charts import Line, line_chart
from openrlhf_maestro.report.compare import Contender, datasources
from openrlhf_maestro.report.formats import milliseconds, number, percent, seconds
from openrlhf_maestro.report.panels import MIN_WEIGHT_SPAN, Panel, curve, padded, unit_title
from openrlhf_maestro.report.run import in_paper_order
from openrlhf_maestro.report.summary import Timing, per_token, timing


def accuracy_panels(runs: Sequence[Contender]) -> list[Panel]:
    """Held-out accuracy over steps, a panel a data set, of the runs that were evaluated more than once on it."""
    panels = []
    for name in datasources(runs):
        rows = {run.name: (run.colour, run.accuracy[name].evaluations) for run in runs if name in run.accuracy}
        lines = [
            Line([item.step for item in evaluations], [item.share for item in evaluations], colour, name=run)
            for run, (colour, evaluations) in rows.items()
        ]
        if all(len(line.steps) < 2 for line in lines):
            continue
        spoken = ", ".join(f"{run} {percent(evaluations[-1].share)}" for run, (_, evaluations) in rows.items())
        label = f"Held-out accuracy, {name}. At the end: {spoken}"
        svg = line_chart(lines, label=label, y_range=(0, 1), percent=True, smoothed=False, markers=True)
        panels.append(Panel(name, "", svg))
    return panels


def reward_panels(runs: Sequence[Contender]) -> list[Panel]:
    """Scalar reward, raw value of each component, and groups without a gradient."""
    keys = {"reward/scalar_mean": "scalar reward"}
    keys |= {f"reward/{name}/raw_mean": unit_title(name) for name in components(runs)}
    panels = [_overlay(runs, key, title) for key, title in keys.items()]
    zero = _overlay(runs, "advantage/frac_zero_std", "groups whose rewards are all equal", as_percent=True)
    return [panel for panel in [*panels, zero] if panel]


def weight_panels(runs: Sequence[Contender]) -> list[Panel]:
    """Mean weight of each component over all prompts, on one scale."""
    keys = {name: f"conductor/weight/{name}" for name in components(runs)}
    values = [value for key in keys.values() for run in runs for value in run.run.series(key).finite()]
    if not values:
        return []
    y_range = padded(min(values), max(values), MIN_WEIGHT_SPAN)
    found = [_overlay(runs, key, name, y_range=y_range) for name, key in keys.items()]
    return [panel for panel in found if panel]


def policy_panels(runs: Sequence[Contender]) -> list[Panel]:
    """Length, truncation, KL, gradient norm, and time by step and by token."""
    steps = {run.name: timing(run.run) for run in runs}
    tokens = {run.name: per_token(run.run, steps[run.name]) for run in runs}
    panels = [
        _overlay(runs, "rollout/response_length_mean", "response length, tokens", from_zero=True),
        _overlay(runs, "rollout/truncated_rate", "truncated responses", as_percent=True),
        _overlay(runs, "policy/kl", "KL to the reference, nats", from_zero=True),
        _overlay(runs, "policy/grad_norm", "gradient norm", from_zero=True),
    ]
    panels.append(_time_panel(runs, steps, "seconds a step", seconds))
    panels.append(_time_panel(runs, tokens, "milliseconds a response token", milliseconds))
    return [panel for panel in panels if panel]


def components(runs: Sequence[Contender]) -> list[str]:
    """The reward components of all runs, the paper's first."""
    return in_paper_order(name for run in runs for name in run.run.components())


def _overlay(
    runs: Sequence[Contender],
    key: str,
    title: str,
    *,
    as_percent: bool = False,
    from_zero: bool = False,
    y_range: tuple[float, float] | None = None,
) -> Panel | None:
    shown = percent if as_percent else number
    curves = [(run, run.run.series(key)) for run in runs]
    spoken = ", ".join(f"{run.name} {shown(series.finite()[-1])}" for run, series in curves if series)
    label = f"{title}. At the last step: {spoken}"
    lines = [curve(series, run.colour, run.name) for run, series in curves if series]
    if not lines:
        return None
    svg = line_chart(lines, label=label, y_range=y_range, from_zero=from_zero or as_percent, percent=as_percent)
    return Panel(title, "", svg)


def _time_panel(
    runs: Sequence[Contender], times: dict[str, Timing], title: str, shown: Callable[[float], str]
) -> Panel | None:
    timed = [run for run in runs if times[run.name].steps]
    if not timed:
        return None
    lines = [Line(times[run.name].steps, times[run.name].total, run.colour, name=run.name) for run in timed]
    spoken = ", ".join(f"{run.name} {shown(times[run.name].median_total)}" for run in timed)
    return Panel(title, "", line_chart(lines, label=f"{title}. Median: {spoken}", from_zero=True))
