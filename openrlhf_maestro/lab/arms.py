"""What is compared, and one simulated run of it: the steps of a training run without a policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from openrlhf_maestro.conductor import ConductorSettings, Observation, Orchestrator, make_orchestrator
from openrlhf_maestro.config.conductor import ConductorSection
from openrlhf_maestro.config.lab import SimulatedComponent, WorldSection
from openrlhf_maestro.lab.world import Groups
from openrlhf_maestro.objective import group_advantages
from openrlhf_maestro.rewards import Component, MeasuredScorer, normalize, scalarize

# The world draws the scores itself.
_DRAWN = MeasuredScorer("drawn", lambda values, _: values)
# The paper's values of whatever the lab has no option for.
_CONDUCTOR = ConductorSection()


@dataclass(frozen=True)
class Arm:
    """An orchestrator with its credit rule."""

    name: str
    kind: str  # conductor.kind
    ranked: bool = False  # rewards.normalisation: rank, else each component's own
    credit: Literal["advantage", "anchor"] = "advantage"
    schedule: Literal["async", "joint"] = "async"
    pairwise: bool = False
    component: str | None = None  # of `single`

    @property
    def learns(self) -> bool:
        return self.kind == "conductor"


PAPER_ARM = Arm("advantage (paper)", "conductor")
ANCHOR_ARM = Arm("anchor", "conductor", credit="anchor")
EQUAL_ARM = Arm("equal", "equal")


def arms(section: WorldSection) -> list[Arm]:
    """Every orchestrator and every credit rule, in the order of the table."""
    return [
        EQUAL_ARM,
        Arm("random", "random"),
        *(Arm(f"single: {part.name}", "single", component=part.name) for part in section.components),
        Arm("fixed, informed", "fixed"),
        PAPER_ARM,
        Arm("advantage, all ranked", "conductor", ranked=True),
        Arm("advantage + pairwise", "conductor", pairwise=True),
        Arm("joint", "conductor", schedule="joint"),
        ANCHOR_ARM,
    ]


def normalised(groups: Groups, components: Sequence[SimulatedComponent], *, ranked: bool) -> Tensor:
    """(N, G, K) component rewards, by ``rewards.normalize``."""
    kinds = [
        Component(part.name, "group_rank" if ranked else part.normalisation, gate=None, scorer=_DRAWN)
        for part in components
    ]
    return normalize(groups.raw, kinds)


def make_arm(arm: Arm, section: WorldSection, *, lr: float, update_steps: int, pairwise_coef: float) -> Orchestrator:
    """The orchestrator of an arm, at its start."""
    names = [part.name for part in section.components]
    settings = ConductorSettings(
        hidden_size=section.hidden_size,
        temperature=_CONDUCTOR.temperature,
        min_prob=_CONDUCTOR.min_prob,
        learn_temperature=_CONDUCTOR.learn_temperature,
        lr=lr,
        update_every=update_steps,
        entropy_coef=_CONDUCTOR.entropy_coef,
        emphasis=_CONDUCTOR.emphasis,
        credit=arm.credit,
        schedule=arm.schedule,
        pairwise_coef=pairwise_coef if arm.pairwise else 0.0,
    )
    return make_orchestrator(
        arm.kind, names, settings=settings, component=arm.component, fixed_weights=_informed_weights(section)
    )


def _informed_weights(section: WorldSection) -> list[float]:
    """What one weight vector for all contexts can know: mean informativeness, not below 0; equal if there is none."""
    known = [max(0.0, sum(part.informativeness.values())) for part in section.components]
    return known if any(known) else [1.0] * len(known)


def train(
    arm: Arm,
    orchestrator: Orchestrator,
    section: WorldSection,
    steps: Iterable[Groups],
    generator: torch.Generator,
) -> Tensor:
    """Lets ``orchestrator`` live through ``steps``, as the trainer does.

    Returns:
        (steps, contexts, K) mean pi in each step; NaN for a context that had no group in it.
    """
    curve = []
    for groups in steps:
        components = normalised(groups, section.components, ranked=arm.ranked)
        h = groups.hidden.flatten(0, 1)
        given = orchestrator.weights(h, h.shape[0], generator)
        curve.append(by_context(given.probs, groups, len(section.contexts)))
        advantages = group_advantages(scalarize(components, given.weights.view_as(components)))
        orchestrator.observe(
            Observation(
                h=h,
                actions=given.actions,
                advantages=advantages.flatten(),
                components=components.flatten(0, 1),
                anchor=groups.anchor.flatten() if arm.credit == "anchor" else None,
                log_prob_mean=groups.log_probs.flatten(),
                truncated=torch.zeros(h.shape[0], dtype=torch.bool),
                group_size=section.responses,
            )
        )
        orchestrator.update()
    return torch.stack(curve)


def by_context(probs: Tensor, groups: Groups, contexts: int) -> Tensor:
    """Means of (B, K) over the responses of each context, (contexts, K)."""
    each = probs.view(*groups.quality.shape, -1).mean(dim=1)  # (N, K)
    return torch.stack([each[groups.contexts == index].mean(dim=0) for index in range(contexts)])


@dataclass(frozen=True)
class Outcome:
    """A trained arm on fresh groups of one context."""

    correlation: float  # of the advantages with the quality, standardised in its group the same way
    weights: Tensor  # (K,) mean pi


def evaluate(
    arm: Arm, orchestrator: Orchestrator, section: WorldSection, groups: Groups, generator: torch.Generator
) -> Outcome:
    """The rewards that a step of training would use, on ``groups`` of one context."""
    components = normalised(groups, section.components, ranked=arm.ranked)
    h = groups.hidden.flatten(0, 1)
    given = orchestrator.weights(h, h.shape[0], generator)
    advantages = group_advantages(scalarize(components, given.weights.view_as(components)))
    quality = group_advantages(groups.quality)
    correlation = torch.corrcoef(torch.stack([advantages.flatten(), quality.flatten()]))[0, 1]
    # Rewards that are the same in every group go with nothing.
    return Outcome(correlation.nan_to_num(0.0).item(), given.probs.mean(dim=0))
