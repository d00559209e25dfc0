"""A panel: one small chart with its title and a figure beside it. What all figures of the page are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openrlhf_maestro.report.charts import Line, line_chart
from openrlhf_maestro.report.formats import number, percent
from openrlhf_maestro.report.run import PAPER_COMPONENTS, Run, Series

COMPONENT_COLOURS = 8

# Weights that moved by less than this are drawn as if they spanned it: noise is not blown up to a trend.
MIN_WEIGHT_SPAN = 0.04

# What the raw values of the paper's components are.
RAW_UNITS = {
    "format": "0 or 1",
    "perplexity": "−NLL, nats a token",
    "entropy": "nats a token",
    "length": "0 to 1",
    "preference": "logit",
}


@dataclass(frozen=True)
class Panel:
    """One small chart: its title, a figure worth reading beside it, the SVG, and for a component its colour."""

    title: str
    value: str
    svg: str
    colour: str = ""


def component_colours(components: Sequence[str]) -> dict[str, str]:
    """The colour of each component, the same in every chart and, for the paper's five, in every report."""
    own = [name for name in components if name not in PAPER_COMPONENTS]
    colours = {name: f"c{index}" for index, name in enumerate(PAPER_COMPONENTS)}
    free = COMPONENT_COLOURS - len(PAPER_COMPONENTS)
    return colours | {name: f"c{len(PAPER_COMPONENTS) + index % free}" for index, name in enumerate(own)}


def unit_title(component: str) -> str:
    """A component's name with what its raw values are, where that is known."""
    return f"{component} ({RAW_UNITS[component]})" if component in RAW_UNITS else component


def metric_panel(
    run: Run,
    key: str,
    title: str,
    colour: str = "accent",
    *,
    from_zero: bool = False,
    as_percent: bool = False,
    events: Sequence[int] = (),
    smoothed: bool = True,
) -> Panel | None:
    """The panel of one key of metrics.jsonl, the last value beside its title; None where it was not logged."""
    series = run.series(key)
    if not series:
        return None
    shown = percent if as_percent else number
    first, last = series.finite()[0], series.finite()[-1]
    svg = line_chart(
        [curve(series, colour)],
        label=f"{title}: {shown(first)} at first, {shown(last)} at the end",
        from_zero=from_zero or as_percent,
        percent=as_percent,
        events=events,
        smoothed=smoothed,
    )
    return Panel(title, shown(last), svg, colour)


def curve(series: Series, colour: str, name: str = "") -> Line:
    """A metric as a line of a chart."""
    return Line(series.steps, series.values, colour, name=name)


def padded(low: float, high: float, min_span: float) -> tuple[float, float]:
    """Limits around [low, high] with a little air, at least `min_span` apart."""
    span = max(high - low, min_span)
    middle = (low + high) / 2
    return max(0.0, middle - 0.54 * span), min(1.0, middle + 0.54 * span)
