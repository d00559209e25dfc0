"""The lab in one picture: correlation by arm and context, weights over the steps, the drift by hidden size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
            color=_COLOURS[index % len(_COLOURS)],
            label=context,
        )
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(findings.arms)), [arm.name.replace(" ", "\n", 1) for arm in findings.arms], fontsize=8)
    _finish(axes, "correlation of the group-relative reward with true quality (mean, sd over seeds)", "correlation")
    axes.legend(frameon=False, fontsize=8)


def _weights(axes: Axes, findings: Findings, arm: Arm, context: int) -> None:
    """Every component's weight in one context: the mean over the seeds, with their range."""
    traces = [run.trace for run in findings.of(arm)]
    curves = torch.stack([torch.stack(trace.weights)[:, context] for trace in traces]).numpy()  # (seeds, points, K)
    for k, name in enumerate(findings.names):
        _band(axes, np.array(traces[0].steps), curves[..., k], _COLOURS[k % len(_COLOURS)], name)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("step", fontsize=8)
    _finish(axes, f"{arm.name}: {findings.config.world.contexts[context]}", "weight")
    axes.legend(frameon=False, fontsize=7)


def _drift(axes: Axes, findings: Findings) -> None:
    for index, row in enumerate(drift_rows(findings)):
        traces = [run.trace for run in findings.drift if run.hidden_size == row.hidden_size]
        k = findings.names.index(row.component)
        curves = torch.stack([torch.stack(trace.weights)[:, 0, k] for trace in traces]).numpy()  # (seeds, steps)
        label = f"H = {row.hidden_size}: {row.component}"
        _band(axes, np.array(traces[0].steps), curves, _COLOURS[index % len(_COLOURS)], label)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("step", fontsize=8)
    _finish(axes, f"drift at lr {findings.config.drift.lr:g}", "weight")
    axes.legend(frameon=False, fontsize=7)


def _band(axes: Axes, x: npt.NDArray[np.int64], curves: npt.NDArray[np.float32], colour: str, label: str) -> None:
    """The mean of (seeds, points) with the range of the seeds; a context may have had no group at a step (NaN)."""
    known = ~np.isnan(curves).any(axis=0)
    x, curves = x[known], curves[:, known]
    axes.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, curves.mean(axis=0), color=colour, linewidth=1.5, label=label)


def _finish(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
