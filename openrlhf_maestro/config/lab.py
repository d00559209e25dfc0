"""The configuration of `maestro lab`: a simulated world with known quality, and what is compared in it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Tag, model_validator

from openrlhf_maestro.config.components import Normalisation, kind_of
from openrlhf_maestro.config.fields import PAPER, Section, option, section


class SimulatedComponent(Section):
    """One simulated component: its level, and how far it goes with the quality in each context."""

    kind: str = option(..., "distribution of the raw values")
    name: str = option(..., "its name", pattern=r"^[A-Za-z0-9_.-]+$")
    level: float = option(0.0, "mean of the raw values; of a binary one the share of ones, 0.5 by default")
    normalisation: Normalisation = option(
        "group_rank", "how raw values become comparable", source=f"{PAPER}, appendix B"
    )
    informativeness: dict[str, float] = option(
        {}, "correlation with the quality by context, -1 to 1; a context that is not named: 0"
    )

    @model_validator(mode="after")
    def _is_a_correlation(self) -> SimulatedComponent:
        for context, value in self.informativeness.items():
            if not -1 <= value <= 1:
                raise ValueError(f"informativeness of {self.name} in {context} is a correlation, -1 to 1, not {value}")
        return self


class ContinuousComponent(SimulatedComponent):
    """Normally distributed."""

    kind: Literal["continuous"] = option("continuous", "distribution of the raw values")
    spread: float = option(1.0, "standard deviation of the raw values", gt=0)


class BinaryComponent(SimulatedComponent):
    """1 where a normally distributed value passes a threshold, else 0; `informativeness` is that of the value."""

    kind: Literal["binary"] = option("binary", "distribution of the raw values")
    level: float = option(0.5, "share of ones", gt=0, lt=1)


AnySimulated = Annotated[
    Annotated[ContinuousComponent, Tag("continuous")] | Annotated[BinaryComponent, Tag("binary")],
    Discriminator(kind_of),
]


def paper_world() -> tuple[SimulatedComponent, ...]:
    """Five components like the paper's: `format` nearly always kept, one informative for each kind of prompt."""
    return (
        BinaryComponent(name="format", level=0.95, normalisation="none"),
        ContinuousComponent(name="perplexity", level=-2.0, spread=0.5, informativeness={"reasoning": 0.9}),
        ContinuousComponent(name="entropy", level=1.0, spread=0.3, informativeness={"creative": 0.9}),
        ContinuousComponent(name="length", level=0.6, spread=0.2, normalisation="none"),
        ContinuousComponent(name="preference", level=0.0, spread=5.0),
    )


class LabSection(Section):
    """The comparison of orchestrators and credit rules."""

    output_dir: str = option("runs/lab", "folder of lab.json, results.csv, weights.csv, lab.png")
    seeds: int = option(5, "repetitions, each with a world of its own", ge=1)
    first_seed: int = option(1, "the repetitions have this seed and the next ones", ge=0)
    meta_updates: int = option(300, "updates of each learned Conductor", unit="updates", ge=1)
    update_steps: int = option(1, "steps between two updates, M", unit="steps", ge=1)
    lr: float = option(5e-2, "AdamW learning rate of the Conductor: fast, so that the end of each rule is seen", gt=0)
    pairwise_coef: float = option(1.0, "coefficient of the pairwise term, in the run that has one", gt=0)
    evaluation_groups: int = option(500, "fresh groups of each context that the correlation is measured on", ge=2)


class WorldSection(Section):
    """What is simulated: groups of responses with known quality."""

    contexts: tuple[str, ...] = option(
        ("reasoning", "creative"), "kinds of prompt, each with a direction of its own in h", min_length=1
    )
    components: tuple[AnySimulated, ...] = option(
        paper_world(), "the K components; docs/conductor.md has the default ones", min_length=2
    )
    groups: int = option(18, "groups a step, N", unit="prompts", source=f"{PAPER}, appendix C", ge=1)
    responses: int = option(5, "responses a group, G", source=PAPER, ge=2)
    hidden_size: int = option(64, "size of h, H", ge=1)
    cosine: float = option(0.5, "cosine of the h of two responses in one context; the RMS of h is 1", gt=0, lt=1)
    cosine_across: float = option(0.25, "cosine of the h of two responses in different contexts", ge=0, lt=1)
    anchor_informativeness: float = option(0.9, "correlation of the trusted signal with the quality", ge=-1, le=1)
    anchor_share: float = option(0.25, "groups that the trusted signal is scored on", unit="share", gt=0, le=1)
    log_prob_informativeness: float = option(
        0.0,
        "correlation of a response's mean-token log-prob with the quality; the joint schedule learns from it",
        ge=-1,
        le=1,
    )

    @model_validator(mode="after")
    def _fits_together(self) -> WorldSection:
        names = [component.name for component in self.components]
        for what, values in (("world.contexts", self.contexts), ("world.components", names)):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} names something twice: {', '.join(values)}")
        for component in self.components:
            unknown = sorted(set(component.informativeness) - set(self.contexts))
            if unknown:
                raise ValueError(
                    f"informativeness of {component.name} names {unknown[0]}, which is not in world.contexts"
                )
        if self.cosine_across > self.cosine:
            raise ValueError("world.cosine_across must not be above world.cosine: contexts would be closer than one is")
        if self.hidden_size <= len(self.contexts):
            raise ValueError(f"world.hidden_size must be above {len(self.contexts)}, the number of contexts")
        return self


class DriftSection(Section):
    """How fast the paper's credit drifts at the paper's own rate, by hidden size; one context."""

    hidden_sizes: tuple[int, ...] = option((128, 512, 1024, 4096), "sizes of h, H; []: leave this part out")
    steps: tuple[int, ...] = option(
        (60, 111, 222), "steps whose weights stand in the table; the highest is the last", unit="steps", min_length=1
    )
    update_steps: int = option(3, "steps between two updates, M", unit="steps", source=f"{PAPER}, Table 8", ge=1)
    lr: float = option(5e-5, "AdamW learning rate of the Conductor", source=f"{PAPER}, Table 8", gt=0)

    @model_validator(mode="after")
    def _are_counts(self) -> DriftSection:
        if min(self.hidden_sizes, default=2) < 2:
            raise ValueError("drift.hidden_sizes must be 2 or more each")
        if min(self.steps) < 1:
            raise ValueError("drift.steps must be 1 or more each: they are counted from 1")
        return self


class LabConfig(Section):
    """Everything `maestro lab` reads."""

    lab: LabSection = section(LabSection)
    world: WorldSection = section(WorldSection)
    drift: DriftSection = section(DriftSection)
