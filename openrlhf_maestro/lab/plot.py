"""The lab in one picture: correlation by arm and context, weights over the steps, the drift by hidden size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from openrlhf_maestro.lab.arms import ANCHOR_ARM, PAPER_ARM, Arm
from openrlhf_maestro.lab.experiment import Findings
from openrlhf_maestro.lab.findings import drift_rows, rows

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")


def write_plot(findings: Findings, path: Path) -> None:
    """Draws the findings into a PNG; without a drift its panel is left out."""
    contexts = findings.config.world.contexts
    shown = [(arm, index) for arm in (PAPER_ARM, ANCHOR_ARM) for index in range(len(contexts))]
    columns = len(shown) + (1 if findings.drift else 0)
    figure = Figure(figsize=(2.9 * columns, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, columns, height_ratios=(1.25, 1))
    _correlations(figure.add_subplot(grid[0, :]), findings)
    for column, (arm, index) in enumerate(shown):
        _weights(figure.add_subplot(grid[1, column]), findings, arm, index)
    if findings.drift:
        _drift(figure.add_subplot(grid[1, -1]), findings)
    figure.savefig(path, dpi=100)


def _correlations(axes: Axes, findings: Findings) -> None:
    contexts = findings.config.world.contexts
    table = list(rows(findings))
    width = 0.8 / len(contexts)
    for index, context in enumerate(contexts):
        here = [row for row in table if row.context == context]
        place = np.arange(len(here)) + (index - (len(contexts) - 1) / 2) * width
        axes.bar(
            place,
            [row.correlation for row in here],
            width,
            yerr=[row.correlation_sd for row in here],
            error_kw={"linewidth": 0.8},
            color=str(0.35 + 0.4 * index / max(1, len(contexts) - 1)),  # greys: colours are components
            label=context,
        )
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(findings.arms)), [arm.name.replace(" ", "\n", 1) for arm in findings.arms], fontsize=8)
    _finish(axes, "correlation of the group-relative reward with true quality (mean, sd over seeds)", "correlation")
    axes.set_xlim(-0.6, len(findings.arms) - 0.4)
    axes.legend(frameon=False, fontsize=8)


def _weights(axes: Axes, findings: Findings, arm: Arm, context: int) -> None:
    """Every component's weight in one context, the steps on a logarithmic scale."""
    curves = findings.curves(arm, context)
    for k, name in enumerate(findings.names):
        _band(axes, curves[..., k], _COLOURS[k % len(_COLOURS)], name)
    axes.set_xscale("log")
    _finish_curves(axes, f"{arm.name}: {findings.config.world.contexts[context]}", "weight")


def _drift(axes: Axes, findings: Findings) -> None:
    """The winner's weight at each hidden size."""
    found = drift_rows(findings)
    for index, row in enumerate(found):
        curves = findings.drift_curves(row.hidden_size)[..., findings.names.index(row.component)]
        shade = str(0.75 * (1 - (index + 1) / len(found)))  # the larger the darker
        _band(axes, curves, shade, f"H = {row.hidden_size}")
    winners = ", ".join(dict.fromkeys(row.component for row in found))
    _finish_curves(axes, f"advantage (paper), lr {findings.config.drift.lr:g}", f"weight of {winners}")


def _band(axes: Axes, curves: Tensor, colour: str, label: str) -> None:
    """The mean of (seeds, steps) with the range of the seeds; a context may have had no group in a step (NaN)."""
    known = ~curves.isnan().any(dim=0)
    steps, values = known.nonzero().flatten().numpy() + 1, curves[:, known].numpy()
    axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    axes.plot(steps, values.mean(axis=0), color=colour, linewidth=1.5, label=label)


def _finish_curves(axes: Axes, title: str, label: str) -> None:
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("step", fontsize=8)
    _finish(axes, title, label)
    # Below: inside it would cover a curve.
    axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncol=2)


def _finish(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
