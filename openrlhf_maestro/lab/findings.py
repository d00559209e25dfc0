"""What the runs of the lab come to: rows by arm and context, and the files they are written to."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf_maestro.lab.experiment import Findings

# A mean weight above this is called a collapse.
COLLAPSED = 0.9


@dataclass(frozen=True)
class Row:
    """One arm in one context, over the seeds."""

    arm: str
    context: str
    correlation: float  # mean
    correlation_sd: float  # sample standard deviation; 0 for one seed
    weights: dict[str, float]  # by component, mean over responses and seeds
    winners: tuple[str, ...]  # the component with the largest weight, seed by seed
    largest: float  # that weight, mean over the seeds
    collapsed_at: float | None  # median step from which on one weight is above COLLAPSED; None: not in most seeds


def rows(findings: Findings) -> Iterator[Row]:
    """The table, arm by arm."""
    for arm in findings.arms:
        runs = findings.of(arm)
        for index, context in enumerate(findings.config.world.contexts):
            found = [run.outcomes[index] for run in runs]
            correlations = [outcome.correlation for outcome in found]
            weights = torch.stack([outcome.weights for outcome in found])  # (seeds, K)
            yield Row(
                arm=arm.name,
                context=context,
                correlation=statistics.fmean(correlations),
                correlation_sd=statistics.stdev(correlations) if len(runs) > 1 else 0.0,
                weights=dict(zip(findings.names, weights.mean(dim=0).tolist(), strict=True)),
                winners=tuple(findings.names[k] for k in weights.argmax(dim=1).tolist()),
                largest=weights.amax(dim=1).mean().item(),
                collapsed_at=settled_above(findings.curves(arm, index).amax(dim=-1), COLLAPSED) if arm.learns else None,
            )


def settled_above(curves: Tensor, limit: float) -> float | None:
    """The median over (seeds, steps) of the step, counted from 1, from which on a curve stays above the limit.

    None where it is not so in most seeds. NaN, a step without a value, decides nothing.
    """
    known = []
    for curve in curves:
        below = (curve <= limit).nonzero().flatten()
        first = below[-1].item() + 2 if len(below) else 1  # the step after the last one below, counted from 1
        if first <= len(curve):
            known.append(first)
    return statistics.median(known) if len(known) * 2 > len(curves) else None


@dataclass(frozen=True)
class DriftRow:
    """The paper's credit at one hidden size, over the seeds."""

    hidden_size: int
    component: str  # whose weight is largest at the end, in most seeds
    weights: dict[int, float]  # its mean weight by step
    above_half_at: float | None  # median step from which on it is above 0.5; None: not in most seeds


def drift_rows(findings: Findings) -> list[DriftRow]:
    """The drift at the steps that are asked for."""
    shown = sorted(set(findings.config.drift.steps))
    found = []
    for size in findings.config.drift.hidden_sizes:
        curves = findings.drift_curves(size)
        winners = curves[:, -1].argmax(dim=1).tolist()
        winner = statistics.mode(winners)
        found.append(
            DriftRow(
                hidden_size=size,
                weights={step: curves[:, step - 1, winner].mean().item() for step in shown},
                component=findings.names[winner],
                above_half_at=settled_above(curves[..., winner], 0.5),
            )
        )
    return found


def write_files(findings: Findings, folder: Path, seconds: float) -> None:
    """Into a folder: lab.json (tables, configuration), results.csv (a row a run and context), weights.csv (curves)."""
    summary: dict[str, Any] = {
        "config": findings.config.model_dump(mode="json"),
        "seconds": round(seconds, 1),
        "smallest_gain_of_anchor_over_equal": findings.gain(),
        "table": [asdict(row) for row in rows(findings)],
        "drift": [asdict(row) for row in drift_rows(findings)],
    }
    (folder / "lab.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    contexts = findings.config.world.contexts
    _write_csv(
        folder / "results.csv",
        ["arm", "seed", "context", "correlation", *(f"weight_{name}" for name in findings.names)],
        (
            [run.arm.name, run.seed, context, outcome.correlation, *outcome.weights.tolist()]
            for run in findings.runs
            for context, outcome in zip(contexts, run.outcomes, strict=True)
        ),
    )
    _write_csv(
        folder / "weights.csv",
        ["arm", "hidden_size", "seed", "context", "step", *findings.names],
        (
            [name, size, seed, context, step, *weights]
            for name, size, seed, context, curve in _curves(findings)
            for step, weights in enumerate(curve.tolist(), start=1)
        ),
    )


def _curves(findings: Findings) -> Iterator[tuple[str, int, int, str, Tensor]]:
    """Arm, hidden size, seed, context and (steps, K) weights of every curve."""
    world = findings.config.world
    for run in findings.runs:
        if run.curve is not None:
            for index, context in enumerate(world.contexts):
                yield run.arm.name, world.hidden_size, run.seed, context, run.curve[:, index]
    for drift in findings.drift:
        yield "drift", drift.hidden_size, drift.seed, world.contexts[0], drift.curve


def _write_csv(path: Path, header: Sequence[str], lines: Iterator[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in line] for line in lines)
