"""Which charts the page shows of a run, and what each says next to it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from openrlhf_maestro.report.charts import MAX_POINTS, Line, line_chart, smoothing_window, stacked_chart
from openrlhf_maestro.report.formats import milliseconds, number, percent, seconds, signed
from openrlhf_maestro.report.held_out import AccuracyRow
from openrlhf_maestro.report.panels import (
    MIN_WEIGHT_SPAN,
    Panel,
    component_colours,
    curve,
    metric_panel,
    padded,
    unit_title,
)
from openrlhf_maestro.report.run import Run, Series
from openrlhf_maestro.report.summary import Timing

PHASE_COLOURS = {"generation": "t0", "experience": "t1", "update": "t2", "sync": "t3", "other": "t4"}

# A step this many times the median (a compilation, usually the first) is cut off, or it would flatten all others.
OUTLIER = 4
# More marks than this would hide the curve.
MAX_SYNC_MARKS = 60


def weight_panels(run: Run) -> list[Panel]:
    """The Conductor's mean weights over steps: over all prompts, then a panel a data set, on one scale (Figure 3)."""
    components = run.components()
    curves = {"all prompts": {name: run.series(f"conductor/weight/{name}") for name in components}}
    for datasource in run.weight_datasources():
        curves[datasource] = {name: run.series(f"conductor/weight/{datasource}/{name}") for name in components}
    values = [value for panel in curves.values() for series in panel.values() for value in series.finite()]
    if not values:
        return []
    uniform = 1 / len(components)
    y_range = padded(min(*values, uniform), max(*values, uniform), MIN_WEIGHT_SPAN)
    return [_weight_panel(title, panel, y_range, uniform) for title, panel in curves.items()]


def _weight_panel(title: str, curves: dict[str, Series], y_range: tuple[float, float], uniform: float) -> Panel:
    logged = {name: series for name, series in curves.items() if series}
    colours = component_colours(list(curves))
    lines = [curve(series, colours[name], name) for name, series in logged.items()]
    last = {name: series.finite()[-1] for name, series in logged.items()}
    highest = max(last, key=lambda name: last[name]) if last else ""
    spoken = ", ".join(f"{name} {number(value)}" for name, value in last.items())
    label = f"Reward weights, {title}. At the last step: {spoken}"
    svg = line_chart(lines, label=label, y_range=y_range, reference=uniform)
    return Panel(title, f"{highest} {last[highest]:.3f}" if highest else "", svg, colours.get(highest, ""))


def reward_panels(run: Run) -> list[Panel]:
    """The scalar reward, then the mean raw value of each component."""
    colours = component_colours(run.components())
    panels = [metric_panel(run, "reward/scalar_mean", "scalar reward")]
    for name in run.components():
        panels.append(metric_panel(run, f"reward/{name}/raw_mean", unit_title(name), colours[name]))
    return [panel for panel in panels if panel]


# What tells a useful component from one that only has a high level: metric, title.
COMPONENT_QUANTITIES = {
    "reward/{}/norm_mean": "level: mean normalised value",
    "reward/{}/norm_group_std": "spread: standard deviation within groups",
    "conductor/action_freq/{}": "share of sampled emphases",
    "conductor/action_reward_corr/{}": "correlation of the emphasis with the reward",
}


def component_panels(run: Run) -> list[Panel]:
    """One chart a quantity with a line a component; those that were logged."""
    panels = []
    for key, title in COMPONENT_QUANTITIES.items():
        curves = {name: run.series(key.format(name)) for name in run.components()}
        if any(curves.values()):
            panels.append(_component_panel(title, {name: series for name, series in curves.items() if series}))
    return panels


def _component_panel(title: str, curves: dict[str, Series]) -> Panel:
    colours = component_colours(list(curves))
    lines = [curve(series, colours[name], name) for name, series in curves.items()]
    last = {name: series.finite()[-1] for name, series in curves.items()}
    spoken = ", ".join(f"{name} {number(value)}" for name, value in last.items())
    highest = max(last, key=lambda name: last[name])
    svg = line_chart(lines, label=f"{title.capitalize()}. At the last step: {spoken}")
    return Panel(title, f"{highest} {last[highest]:.2f}", svg, colours[highest])


def fault_panels(run: Run) -> list[Panel]:
    """Rates of missing values and of responses at fault; none that stayed at zero."""
    colours = component_colours(run.components())
    wanted = [
        (f"reward/{name}/{rate}", f"{name}: {words}", colours[name])
        for rate, words in (("missing_rate", "scorer gave no value"), ("fault_rate", "response at fault"))
        for name in run.components()
        if any(value > 0 for value in run.series(f"reward/{name}/{rate}").finite())
    ]
    panels = [metric_panel(run, key, title, colour, as_percent=True) for key, title, colour in wanted]
    return [panel for panel in panels if panel]


def advantage_panels(run: Run, advantages: dict[int, list[float]]) -> list[Panel]:
    """Groups without a gradient, and the spread of the advantages, given by step."""
    panels = [
        metric_panel(run, "advantage/frac_zero_std", "groups whose rewards are all equal", as_percent=True),
        _advantage_panel(advantages),
    ]
    return [panel for panel in panels if panel]


def _advantage_panel(advantages: dict[int, list[float]]) -> Panel | None:
    if not advantages:
        return None
    low, middle, high = np.array([np.percentile(values, [5, 50, 95]) for values in advantages.values()]).T
    line = Line(list(advantages), middle, low=low, high=high)
    last = f"{signed(low[-1], 2)} to {signed(high[-1], 2)}"
    label = f"Advantages, median and 5th to 95th percentile. At the last step: {last}"
    return Panel("advantages: median, 5 to 95 %", last, line_chart([line], label=label, smoothed=False))


def sync_steps(run: Run) -> list[int]:
    """Steps after which the policy was mixed into the reference; none where it never is, or has none."""
    every = run.option("objective.ref_sync_steps")
    return list(range(every, run.last_step + 1, every)) if isinstance(every, int) and every > 0 else []


def policy_panels(run: Run) -> list[Panel]:
    """Length, truncation, KL, gradient norm, learning rate, and how far vLLM and the trainer disagree."""
    syncs = sync_steps(run)
    marks = syncs if len(syncs) <= MAX_SYNC_MARKS else ()
    panels = [
        metric_panel(run, "rollout/response_length_mean", "response length, tokens", from_zero=True),
        metric_panel(run, "rollout/truncated_rate", "truncated responses", as_percent=True),
        # Every sync lowers it: a moving average would hide the teeth.
        metric_panel(run, "policy/kl", "KL to the reference, nats", from_zero=True, events=marks, smoothed=not syncs),
        metric_panel(run, "policy/grad_norm", "gradient norm", from_zero=True),
        metric_panel(run, "policy/lr", "policy learning rate", from_zero=True),
        _disagreement_panel(run),
    ]
    return [panel for panel in panels if panel]


def _disagreement_panel(run: Run) -> Panel | None:
    """Largest and mean difference of log-probs over the response tokens of each step, on a logarithmic axis."""
    largest, mean = run.series("rollout/logprob_diff_max"), run.series("rollout/logprob_diff_mean")
    if not any(value > 0 for value in largest.finite()):
        return None
    worst = number(max(largest.finite()))
    label = f"Difference of log-probs between vLLM and the trainer, maximum and mean of each step: at most {worst}"
    lines = [curve(series, "accent", name) for name, series in (("max", largest), ("mean", mean)) if series]
    return Panel("log-prob difference, max and mean", f"≤ {worst}", line_chart(lines, label=label, log=True))


def conductor_panels(run: Run) -> list[Panel]:
    """State of the Conductor itself."""
    panels = [
        metric_panel(run, "conductor/entropy", "entropy of the weights, nats"),
        metric_panel(run, "conductor/temperature", "temperature"),
        metric_panel(run, "conductor/meta_loss", "meta-loss"),
        metric_panel(run, "conductor/max_weight", "largest mean weight"),
        metric_panel(run, "conductor/lr_h_l1", "reach of an update, lr × |h|₁"),
        metric_panel(run, "conductor/meta_reward", "agreement with the anchor"),
    ]
    return [panel for panel in panels if panel]


def accuracy_panels(rows: list[AccuracyRow]) -> list[Panel]:
    """Held-out accuracy over steps with its 95 % interval, where there are at least three evaluations."""
    return [_accuracy_panel(row) for row in rows if len(row.evaluations) > 2]


def _accuracy_panel(row: AccuracyRow) -> Panel:
    steps = [evaluation.step for evaluation in row.evaluations]
    shares = [evaluation.share for evaluation in row.evaluations]
    intervals = [evaluation.interval for evaluation in row.evaluations]
    known = [interval for interval in intervals if interval is not None]
    bounds = list(zip(*known, strict=True)) if len(known) == len(steps) else [None, None]
    line = Line(steps, shares, low=bounds[0], high=bounds[1])
    ends = f"{percent(shares[0])} at step {steps[0]}, {percent(shares[-1])} at step {steps[-1]}"
    label = f"Held-out accuracy, {row.datasource}: {ends}"
    svg = line_chart([line], label=label, y_range=(0, 1), percent=True, smoothed=False, markers=True)
    return Panel(row.datasource, percent(row.last.share), svg)


def timing_panel(times: Timing) -> Panel | None:
    """Seconds a step, stacked by phase; None before the first step."""
    return _stacked_panel(times, "seconds a step", seconds)


def token_timing_panel(times: Timing) -> Panel | None:
    """Milliseconds a response token, stacked by phase; None where no step logged its tokens."""
    return _stacked_panel(times, "milliseconds a response token", milliseconds)


def _stacked_panel(times: Timing, unit: str, shown: Callable[[float], str]) -> Panel | None:
    if not times.steps:
        return None
    longest, middle = max(times.total), times.median_total
    top = longest * 1.05 if longest < OUTLIER * middle else OUTLIER / 2 * middle
    bands = [(name, PHASE_COLOURS[name], values) for name, values in times.phases.items()]
    label = f"{unit.capitalize()} by phase, median {shown(middle)}"
    note = f"cut off: step {times.steps[times.total.index(longest)]}, {shown(longest)}" if longest > top else ""
    return Panel(unit, note, stacked_chart(times.steps, bands, label=label, top=top))


def smoothing_note(run: Run) -> str:
    """How the thick curves were smoothed, in words; empty where they were not."""
    points = len(run.series("reward/scalar_mean").steps)
    window = smoothing_window(min(points, MAX_POINTS)) * math.ceil(points / MAX_POINTS)
    return f"Thin lines are single steps, thick lines a moving average over {window} steps." if window > 1 else ""
