"""The whole experiment: every arm over the seeds, and the drift by hidden size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from openrlhf_maestro.config.lab import DriftSection, LabConfig, WorldSection
from openrlhf_maestro.lab.arms import (
    ANCHOR_ARM,
    EQUAL_ARM,
    PAPER_ARM,
    Arm,
    Outcome,
    arms,
    evaluate,
    make_arm,
    train,
)
from openrlhf_maestro.lab.world import Groups, World

_Run = TypeVar("_Run")


@dataclass(frozen=True)
class ArmRun:
    """One arm under one seed."""

    arm: Arm
    seed: int
    outcomes: tuple[Outcome, ...]  # by context
    curve: Tensor | None  # (steps, contexts, K) mean pi in each step; None for an arm that does not learn


@dataclass(frozen=True)
class DriftRun:
    """The paper's credit at one hidden size under one seed; its world has one context."""

    hidden_size: int
    seed: int
    curve: Tensor  # (steps, K) mean pi in each step


@dataclass(frozen=True)
class Findings:
    """Everything that the lab found."""

    config: LabConfig
    runs: tuple[ArmRun, ...]
    drift: tuple[DriftRun, ...]

    @property
    def names(self) -> list[str]:
        return [component.name for component in self.config.world.components]

    @property
    def arms(self) -> list[Arm]:
        return arms(self.config.world)

    def of(self, arm: Arm) -> list[ArmRun]:
        """The runs of an arm, by seed."""
        return [run for run in self.runs if run.arm == arm]

    def curves(self, arm: Arm, context: int) -> Tensor:
        """(seeds, steps, K) mean pi of a learning arm in a context, by its index."""
        return torch.stack([run.curve[:, context] for run in self.of(arm) if run.curve is not None])

    def drift_curves(self, hidden_size: int) -> Tensor:
        """(seeds, steps, K) mean pi of the paper's credit at a hidden size."""
        return torch.stack([run.curve for run in self.drift if run.hidden_size == hidden_size])

    def gain(self) -> dict[str, float]:
        """By context: the correlation of anchored credit less that of equal weights, smallest over the seeds."""
        pairs = list(zip(self.of(ANCHOR_ARM), self.of(EQUAL_ARM), strict=True))
        return {
            context: min(
                anchored.outcomes[index].correlation - equal.outcomes[index].correlation for anchored, equal in pairs
            )
            for index, context in enumerate(self.config.world.contexts)
        }


def run_lab(config: LabConfig, progress: Callable[[], None] = lambda: None) -> Findings:
    """Runs everything; calls ``progress`` after each of ``run_count(config)`` runs.

    All arms of a seed see the same groups, so that they differ by their rule alone.
    """
    seeds = range(config.lab.first_seed, config.lab.first_seed + config.lab.seeds)
    runs = tuple(_counted((run for seed in seeds for run in _compare(config, seed)), progress))
    drift = tuple(_counted(_drift_runs(config, seeds), progress))
    return Findings(config, runs, drift)


def run_count(config: LabConfig) -> int:
    """How often ``run_lab`` calls ``progress``."""
    return config.lab.seeds * (len(arms(config.world)) + len(config.drift.hidden_sizes))


def _counted(runs: Iterator[_Run], progress: Callable[[], None]) -> Iterator[_Run]:
    for run in runs:
        progress()
        yield run


def _compare(config: LabConfig, seed: int) -> Iterator[ArmRun]:
    lab, section = config.lab, config.world
    world = World(section, seed)
    steps = [world.draw() for _ in range(lab.meta_updates * lab.update_steps)]
    fresh = [world.draw(lab.evaluation_groups, context) for context in range(len(section.contexts))]
    for arm in arms(section):
        orchestrator = make_arm(arm, section, lr=lab.lr, update_steps=lab.update_steps, pairwise_coef=lab.pairwise_coef)
        generator = torch.Generator().manual_seed(seed)
        curve = train(arm, orchestrator, section, steps, generator) if arm.learns else None
        outcomes = tuple(evaluate(arm, orchestrator, section, groups, generator) for groups in fresh)
        yield ArmRun(arm, seed, outcomes, curve)


def _drift_runs(config: LabConfig, seeds: range) -> Iterator[DriftRun]:
    for size in config.drift.hidden_sizes:
        for seed in seeds:
            yield DriftRun(size, seed, _drift(config.world, config.drift, size, seed))


def _drift(world_section: WorldSection, drift: DriftSection, size: int, seed: int) -> Tensor:
    """The paper's credit in the first context of the world, with hidden states of another size."""
    section = world_section.model_copy(
        update={
            "hidden_size": size,
            "contexts": world_section.contexts[:1],
            "cosine_across": world_section.cosine,  # one context: only the shared direction
        }
    )
    world = World(section, seed)
    orchestrator = make_arm(PAPER_ARM, section, lr=drift.lr, update_steps=drift.update_steps, pairwise_coef=0.0)
    # Drawn one by one: 222 steps at H = 4096 would take a third of a gigabyte.
    steps: Iterator[Groups] = (world.draw() for _ in range(max(drift.steps)))
    return train(PAPER_ARM, orchestrator, section, steps, torch.Generator().manual_seed(seed)).squeeze(1)
