"""Charts as inline SVG: plain data in, markup out. Colours are CSS variables: one drawing for light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from openrlhf_maestro.report.svg import colour_of, markup

Array = npt.NDArray[np.float64]

# Size in SVG units, one of which is about one CSS pixel where a panel has its natural width.
PANEL = (340, 190)
WIDE = (560, 216)
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 44, 10, 10, 34
TICK_SIZE = 10.5

# More points than a panel has pixels only make the page heavy.
MAX_POINTS = 400
MIN_POINTS_TO_SMOOTH = 12


@dataclass(frozen=True)
class Line:
    """One curve: `values[i]` at `steps[i]`, NaN for a gap; `low` and `high`, where given, bound a shaded interval."""

    steps: Sequence[int]
    values: Sequence[float]
    colour: str = "accent"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    name: str = ""  # said beside the value under the pointer


def smooth(values: Array, window: int) -> Array:
    """Centred moving average over `window` points, (S,) -> (S,); shorter at the ends, NaN left out and kept."""
    known = ~np.isnan(values)
    kernel = np.ones(window)
    totals = np.convolve(np.where(known, values, 0.0), kernel, mode="full")
    counts = np.convolve(known.astype(float), kernel, mode="full")
    start = (window - 1) // 2
    inside = slice(start, start + len(values))
    means = np.divide(totals[inside], counts[inside], out=np.full(len(values), np.nan), where=counts[inside] > 0)
    return np.where(known, means, np.nan)


def smoothing_window(points: int) -> int:
    """Odd number of steps that a smoothed curve averages over; 1 where there is too little to smooth."""
    return 1 if points < MIN_POINTS_TO_SMOOTH else 2 * max(1, min(points, MAX_POINTS) // 16) + 1


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    y_range: tuple[float, float] | None = None,
    from_zero: bool = False,
    reference: float | None = None,
    log: bool = False,
    percent: bool = False,
    smoothed: bool = True,
    markers: bool = False,
    events: Sequence[int] = (),
) -> str:
    """Curves over steps as one <svg>.

    A curve of at least 12 points is drawn thin, with its moving average on top (`smoothed`). `label` is what a screen
    reader says; `reference` draws a dotted horizontal line, `events` a dotted vertical one at each of these steps;
    `from_zero`, `log` and `percent` are about the vertical axis.
    """
    with _style():
        figure, axes = _axes(PANEL)
        if log:
            axes.set_yscale("log")
        if reference is not None:
            axes.axhline(reference, color=colour_of("muted"), linewidth=1, linestyle=(0, (1, 3)), clip_on=False)
        for step in events:
            axes.axvline(step, color=colour_of("muted"), linewidth=0.7, linestyle=(0, (1, 3)), clip_on=False)
        for line in lines:
            _draw_line(axes, line, smoothed=smoothed, markers=markers, log=log)
        if y_range is not None:
            axes.set_ylim(*y_range)
        elif from_zero:
            axes.set_ylim(0, max(axes.get_ylim()[1], 1e-9))
        _finish_axes(axes, [step for line in lines for step in line.steps], log=log, percent=percent)
        return markup(figure, label, _readings(lines, axes, PANEL[0], percent=percent))


def stacked_chart(
    steps: Sequence[int],
    bands: Sequence[tuple[str, str, Sequence[float]]],
    *,
    label: str,
    top: float,
) -> str:
    """Amounts per step as stacked bands, given as (name, colour, values) from the bottom up; drawn up to `top`."""
    with _style():
        figure, axes = _axes(WIDE)
        x, amounts = _thinned(steps, [values for _, _, values in bands])
        half = (x[-1] - x[0]) / (len(x) - 1) / 2 if len(x) > 1 else 0.5
        edges = np.column_stack([x - half, x + half]).ravel()
        floor = np.zeros(len(edges))
        for (_, colour, _), values in zip(bands, amounts, strict=True):
            ceiling = floor + np.repeat(np.nan_to_num(values), 2)
            _fill(axes, edges, np.minimum(floor, top), np.minimum(ceiling, top), colour_of(colour))
            floor = ceiling
        axes.set_ylim(0, top)
        _finish_axes(axes, steps, log=False, percent=False)
        axes.set_xlim(edges[0], edges[-1])
        lines = [Line(steps, values, colour, name=name) for name, colour, values in bands]
        return markup(figure, label, _readings(lines, axes, WIDE[0]))


def _draw_line(axes: Axes, line: Line, *, smoothed: bool, markers: bool, log: bool) -> None:
    x, (y,) = _thinned(line.steps, [line.values])
    if log:
        y = np.where(y > 0, y, np.nan)
    colour = colour_of(line.colour)
    if line.low is not None and line.high is not None:
        _fill(axes, np.asarray(line.steps, float), np.asarray(line.low), np.asarray(line.high), colour, alpha=0.16)
    window = smoothing_window(len(y)) if smoothed and not log else 1
    if window > 1:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.32, clip_on=False)
        y = smooth(y, window)
    # A lone point has no line to show it.
    dots = "o" if markers or np.count_nonzero(~np.isnan(y)) == 1 else ""
    axes.plot(x, y, color=colour, linewidth=1.7, marker=dots, clip_on=False)


def _fill(axes: Axes, x: Array, low: Array, high: Array, colour: str, alpha: float = 1.0) -> None:
    axes.fill(
        np.concatenate([x, x[::-1]]),
        np.concatenate([high, low[::-1]]),
        facecolor=colour,
        alpha=alpha,
        linewidth=0,
        clip_on=False,
    )


def _readings(lines: Sequence[Line], axes: Axes, width: int, *, percent: bool = False) -> dict[str, Any]:
    """What charts.js says under the pointer: where the horizontal axis lies, and the values drawn, null for a gap."""
    first, last = axes.get_xlim()
    drawn = [(line, *_thinned(line.steps, [line.values])) for line in lines]
    by_step = [dict(zip(x.tolist(), y.tolist(), strict=True)) for _, x, (y,) in drawn]
    steps = sorted({step for values in by_step for step in values})
    return {
        "axis": [MARGIN_LEFT, width - MARGIN_RIGHT, _short(first), _short(last)],
        "percent": percent,
        "steps": [_short(step) for step in steps],
        "lines": [
            [line.name, line.colour, [_short(values.get(step, math.nan)) for step in steps]]
            for line, values in zip(lines, by_step, strict=True)
        ],
    }


def _short(value: float) -> float | None:
    """Four significant digits; whole numbers of any size as they are."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.4g}")


def _thinned(steps: Sequence[int], columns: Sequence[Sequence[float]]) -> tuple[Array, list[Array]]:
    """At most MAX_POINTS points: means of neighbouring steps where there are more."""
    x, ys = np.asarray(steps, float), [np.asarray(column, float) for column in columns]
    if len(x) <= MAX_POINTS:
        return x, ys
    parts = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.array([x[part].mean() for part in parts]), [
        np.array([y[part][~np.isnan(y[part])].mean() if not np.isnan(y[part]).all() else np.nan for part in parts])
        for y in ys
    ]


@contextmanager
def _style() -> Iterator[None]:
    # Texts stay texts, in the page's own font; a `$` in them is not mathematics.
    with matplotlib.rc_context({"svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": "maestro"}):
        yield


def _axes(size: tuple[int, int]) -> tuple[Figure, Axes]:
    width, height = size
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.add_axes(
        (
            MARGIN_LEFT / width,
            MARGIN_BOTTOM / height,
            (width - MARGIN_LEFT - MARGIN_RIGHT) / width,
            (height - MARGIN_TOP - MARGIN_BOTTOM) / height,
        )
    )
    axes.patch.set_visible(False)
    return figure, axes


def _finish_axes(axes: Axes, steps: Sequence[int], *, log: bool, percent: bool) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colour_of("muted"))
    axes.spines["bottom"].set_linewidth(0.8)
    axes.tick_params(length=0, pad=5, labelsize=TICK_SIZE, labelcolor=colour_of("muted"))
    axes.grid(axis="y", color=colour_of("rule"), linewidth=0.8, clip_on=False)
    axes.set_axisbelow(True)
    axes.set_xlabel("step", fontsize=TICK_SIZE, color=colour_of("muted"), labelpad=2)
    first, last = (min(steps), max(steps)) if steps else (0, 1)
    axes.set_xlim(first, last) if last > first else axes.set_xlim(first - 1, first + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if log:
        low, high = axes.get_ylim()
        # Whole decades, or a curve inside one of them would have no tick at all.
        axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power_of_ten(value)))
        return
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(FuncFormatter(_tick_format(low, high, percent=percent)))


def _tick_format(low: float, high: float, *, percent: bool) -> Callable[[float, int], str]:
    """Short tick labels: as many decimals as the span needs, powers of ten only for very small or large values."""
    largest = max(abs(low), abs(high))
    decimals = max(0, math.ceil(-math.log10((high - low) / 4)))

    def tick(value: float, _: int) -> str:
        if value == 0:
            text = "0"
        elif percent:
            text = f"{100 * value:.{max(0, decimals - 2)}f}\u202f%"
        elif 1e-3 <= largest < 1e6:
            text = f"{value:,.{decimals}f}"
        else:
            text = _power_of_ten(value)
        return text.replace("-", "−") if value < 0 else text

    return tick


def _power_of_ten(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
