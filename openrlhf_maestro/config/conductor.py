"""The section of the Conductor, and what can be wrong with it in a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from openrlhf_maestro.config.fields import PAPER, Section, changed, option

_LEARNING = {
    "lr", "update_steps", "entropy_coef", "emphasis", "keep_truncated",
    "credit", "schedule", "pairwise_coef", "anchor_share",
}  # fmt: skip


class ConductorSection(Section):
    """Who chooses the weights of the components, and how the Conductor learns to."""

    kind: Literal["conductor", "equal", "random", "fixed", "single"] = option(
        "conductor", "conductor: learned; equal, random, fixed or single: not", source=PAPER
    )
    component: str | None = option(None, "single: the name of the one component that counts")
    weights: dict[str, float] | None = option(None, "fixed: the weight of each component by name; normalised to sum 1")
    credit: Literal["advantage", "anchor"] = option(
        "advantage",
        "what the Conductor learns from. advantage: the policy's, for the sampled emphasis; anchor: the components' "
        "agreement with the component that has anchor: true",
        source=PAPER,
    )
    pairwise_coef: float = option(
        0.0, "credit advantage: weight of the comparisons of a group's responses", source=f"{PAPER}, Table 5", ge=0
    )
    schedule: Literal["async", "joint"] = option(
        "async",
        "async: an update every update_steps, on sampled emphases; joint: every step, by the gradient of the "
        "advantages in the weights, with weights pi",
        source=f"{PAPER}, Table 6",
    )
    anchor_share: float = option(
        0.25, "credit anchor: share of the groups that the anchor scores", unit="share", gt=0, le=1
    )
    context_layer: Literal["last", "middle", "first"] = option(
        "last", "the policy's layer whose output is the Conductor's input", source=f"{PAPER}, Table 4"
    )
    context_pooling: Literal["last_token", "mean"] = option(
        "last_token", "of that output, the last token or the mean over the response's tokens", source=f"{PAPER}, 3.1"
    )
    init_from: str | None = option(
        None, "folder of a saved Conductor to start from; its temperature and floor hold; null: uniform weights"
    )
    freeze: bool = option(False, "keep the Conductor as it is: weights pi, no updates; needs init_from")
    lr: float = option(5e-5, "AdamW learning rate", source=f"{PAPER}, Table 8", gt=0)
    update_steps: int = option(3, "GRPO steps between two updates, M", unit="steps", source=f"{PAPER}, Table 8", ge=1)
    entropy_coef: float = option(1e-3, "coefficient of the entropy bonus", source=f"{PAPER}, Table 8", ge=0)
    emphasis: float = option(0.5, "eta: weights are (1 - eta) pi + eta onehot(a)", ge=0, le=1)
    temperature: float = option(1.0, "tau of the softmax at the start", source=f"{PAPER}, appendix E", gt=0)
    learn_temperature: bool = option(True, "learn tau", source=f"{PAPER}, appendix E")
    min_prob: float = option(1e-4, "floor of every probability", source=f"{PAPER}, appendix E.1", gt=0, lt=0.1)
    keep_truncated: bool = option(False, "let truncated responses into the meta-buffer")

    @property
    def reads_anchor(self) -> bool:
        """Whether the component with `anchor: true` has a use in this run."""
        return self.kind == "conductor" and not self.freeze and self.credit == "anchor"

    def problems(self, names: Sequence[str], anchor: str | None, kl_in_reward: bool) -> Iterator[str]:
        """What cannot work.

        Args:
            names: the components of the reward.
            anchor: the component with `anchor: true`, where there is one.
            kl_in_reward: whether the scalar reward has a KL term.
        """
        if self.kind == "single" and self.component not in names:
            yield f"conductor.kind: single needs conductor.component to be one of {', '.join(names)}."
        if self.kind == "fixed":
            weights = self.weights or {}
            if sorted(weights) != sorted(names) or min(weights.values(), default=-1) < 0 or sum(weights.values()) <= 0:
                yield (
                    "conductor.kind: fixed needs conductor.weights, not negative and not all 0, "
                    f"for exactly {', '.join(names)}."
                )
        if self.kind != "conductor":
            return
        if len(names) < 2:
            yield "conductor.kind: conductor has nothing to choose with one component. Use conductor.kind: single."
        if self.min_prob * len(names) >= 1:
            yield f"conductor.min_prob ({self.min_prob:g}) must be below 1 / {len(names)} with {len(names)} components."
        if self.freeze and self.init_from is None:
            yield (
                "conductor.freeze would keep a new Conductor at its uniform weights. Set conductor.init_from to the "
                "folder of a saved one, or conductor.kind: equal."
            )
        if not self.freeze:
            yield from self._credit_problems(anchor, kl_in_reward)

    def _credit_problems(self, anchor: str | None, kl_in_reward: bool) -> Iterator[str]:
        if self.credit == "anchor" and self.schedule == "joint":
            yield (
                "conductor.schedule: joint learns from the policy's advantages, conductor.credit: anchor from the "
                "anchor. Set the schedule to async, or the credit to advantage."
            )
        if self.credit == "anchor" and anchor is None:
            yield (
                "conductor.credit: anchor needs a trusted signal: set anchor: true on the one component of "
                "rewards.components that is it."
            )
        if self.credit != "anchor" and anchor is not None:
            yield (
                f"the `{anchor}` component has anchor: true, and nothing reads it with conductor.credit: {self.credit}."
                " Set conductor.credit to anchor, or take `anchor` off the component to make it part of the reward."
            )
        if self.emphasis == 0 and (self.credit, self.schedule) == ("advantage", "async"):
            yield (
                "conductor.emphasis: 0 gives every response the weights pi, so that the advantage says nothing about "
                "the sampled emphasis and the update is noise. Raise it, or set conductor.schedule: joint or "
                "conductor.credit: anchor, which need no emphasis."
            )
        if self.pairwise_coef and (self.credit, self.schedule) != ("advantage", "async"):
            yield (
                "conductor.pairwise_coef compares sampled emphases: it needs conductor.credit: advantage and "
                "conductor.schedule: async. Set it to 0 or those."
            )
        if self.schedule == "joint" and kl_in_reward:
            yield (
                "conductor.schedule: joint takes the advantages as a function of the weights alone, and "
                "objective.kl_in: reward puts the KL into them. Set objective.kl_in to loss."
            )

    def notes(self, anchor: str | None) -> Iterator[str]:
        """Options that were set but have no effect, one sentence each."""
        without_effect = {
            name: cause for names, cause in self._without_effect() for name in sorted(names & changed(self))
        }
        for name, cause in sorted(without_effect.items()):
            yield f"conductor.{name} has no effect with conductor.{cause}."
        if anchor is not None and not self.reads_anchor:
            cause = "freeze: true" if self.kind == "conductor" else f"kind: {self.kind}"
            yield f"the `{anchor}` component, an anchor, is not scored with conductor.{cause}."

    def _without_effect(self) -> Iterator[tuple[set[str], str]]:
        """Options, and the option that makes them idle."""
        if self.kind != "conductor":
            effective = {"single": {"component"}, "fixed": {"weights"}}.get(self.kind, set())
            yield set(type(self).model_fields) - effective - {"kind"}, f"kind: {self.kind}"
            return
        yield {"component", "weights"}, "kind: conductor"
        if self.init_from is not None:
            yield {"temperature", "learn_temperature", "min_prob"}, "init_from, whose Conductor has its own"
        if self.freeze:
            yield _LEARNING, "freeze: true"
            return
        if self.credit == "anchor":
            yield {"emphasis"}, "credit: anchor, which samples none"
        else:
            yield {"anchor_share"}, f"credit: {self.credit}"
        if self.schedule == "joint":
            yield {"emphasis", "update_steps"}, "schedule: joint"
