"""Who sets the weights of a response's rewards: a learned Conductor, or one of the fixed rules it is compared with."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openrlhf_maestro.conductor.buffer import MetaBuffer
from openrlhf_maestro.conductor.conductor import Conductor
from openrlhf_maestro.conductor.losses import meta_loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Orchestration:
    """The weights of B responses, and where they come from."""

    weights: Tensor  # (B, K) float32 on the simplex: the w of the scalar reward
    actions: Tensor | None  # (B,) int64: the emphasis of each response; None where nothing is sampled
    probs: Tensor  # (B, K) float32 on the simplex: the distribution without emphasis, as in Figure 3


class Orchestrator:
    """The interface, with the behaviour of one that needs no hidden states and learns nothing."""

    needs_hidden: bool = False

    def weights(self, h: Tensor | None, batch_size: int, generator: torch.Generator | None = None) -> Orchestration:
        """Weights for ``batch_size`` responses.

        Args:
            h: (B, H) hidden states; None unless ``needs_hidden``.
            batch_size: B.
            generator: source of randomness; None is torch's global one.
        """
        raise NotImplementedError

    def observe(self, h: Tensor | None, actions: Tensor | None, advantages: Tensor, *, truncated: Tensor) -> None:
        """Take in one step.

        Args:
            h: what ``weights`` was given.
            actions: what it returned.
            advantages: (B,) the policy's advantages.
            truncated: (B,) bool, the responses cut at the length limit.
        """

    def update(self) -> dict[str, float] | None:
        """Learn, if it is time to. Call once a step, after ``observe``.

        Returns:
            Metrics of the update (``meta_loss``, ``entropy``, ``temperature``, ``lr_h_l1``), None where none was made.
        """
        return None

    @property
    def updates(self) -> int:
        """How many updates were made so far."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs, as tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: naming the field, where the state is that of another orchestrator.
        """
        if state:
            raise ValueError(f"orchestrator: {type(self).__name__} has no state, the checkpoint has {sorted(state)}")


class FixedOrchestrator(Orchestrator):
    """The same weights for every response: equal weights, a single component, or a given vector."""

    def __init__(self, weights: Sequence[float]) -> None:
        """Weights of the K components, non-negative; only their proportions count.

        Raises:
            ValueError: if a weight is negative or not finite, or none is positive.
        """
        if not all(math.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
            raise ValueError(f"fixed weights must be finite, non-negative and not all 0, got {list(weights)}")
        total = sum(weights)
        self._weights = torch.tensor([w / total for w in weights], dtype=torch.float32)  # (K,)

    def weights(self, h: Tensor | None, batch_size: int, generator: torch.Generator | None = None) -> Orchestration:
        weights = self._weights.repeat(batch_size, 1)
        return Orchestration(weights=weights, actions=None, probs=weights)


class RandomOrchestrator(Orchestrator):
    """Weights drawn for every response from the uniform distribution on the simplex, Dirichlet(1, ..., 1)."""

    def __init__(self, num_components: int) -> None:
        self._num_components = num_components

    def weights(self, h: Tensor | None, batch_size: int, generator: torch.Generator | None = None) -> Orchestration:
        # Normalised exponentials are Dirichlet(1); torch.distributions takes no generator.
        draws = torch.empty(batch_size, self._num_components).exponential_(generator=generator)
        weights = draws / draws.sum(dim=1, keepdim=True)
        return Orchestration(weights=weights, actions=None, probs=weights)


@dataclass(frozen=True)
class ConductorSettings:
    """Values of a learned Conductor, as they stand in the configuration."""

    hidden_size: int
    temperature: float  # initial tau
    min_prob: float  # floor of each component's probability
    learn_temperature: bool
    lr: float  # AdamW, no weight decay
    update_every: int  # M: GRPO steps between two updates
    entropy_coef: float  # lambda_ent
    emphasis: float  # eta: share of a weight vector that the sampled emphasis takes
    keep_truncated: bool = False  # whether responses cut at the length limit enter the meta-buffer


class LearnedOrchestrator(Orchestrator):
    """The Conductor with its optimiser and its meta-buffer: one update of the slow time scale every M steps [E]."""

    needs_hidden = True

    def __init__(self, settings: ConductorSettings, reward_names: Sequence[str]) -> None:
        """A Conductor at its start.

        Raises:
            ValueError: if a setting is out of range.
        """
        if settings.update_every < 1:
            raise ValueError(f"Conductor: update_every must be at least 1, got {settings.update_every}")
        if not 0 <= settings.emphasis <= 1:
            raise ValueError(f"Conductor: emphasis must be in [0, 1], got {settings.emphasis}")
        self.settings = settings
        self.conductor = Conductor(
            settings.hidden_size,
            reward_names,
            temperature=settings.temperature,
            min_prob=settings.min_prob,
            learn_temperature=settings.learn_temperature,
        )
        # The paper names no weight decay; decaying log tau would pull the temperature to 1.
        self.optimizer = torch.optim.AdamW(self.conductor.parameters(), lr=settings.lr, weight_decay=0.0)
        self.buffer = MetaBuffer()
        self._updates = 0

    @property
    def updates(self) -> int:
        return self._updates

    @torch.no_grad()
    def weights(self, h: Tensor | None, batch_size: int, generator: torch.Generator | None = None) -> Orchestration:
        """See ``Orchestrator.weights``.

        Raises:
            ValueError: if ``h`` is None or has not ``batch_size`` rows.
        """
        if h is None or h.shape[0] != batch_size:
            found = None if h is None else tuple(h.shape)
            raise ValueError(f"Conductor: expected hidden states of {batch_size} responses, got {found}")
        actions, _ = self.conductor.sample(h, generator)
        return Orchestration(
            weights=self.conductor.weights(h, actions, self.settings.emphasis),
            actions=actions,
            probs=self.conductor.probs(h),
        )

    def observe(self, h: Tensor | None, actions: Tensor | None, advantages: Tensor, *, truncated: Tensor) -> None:
        """See ``Orchestrator.observe``. Truncated responses stay out of the meta-buffer unless ``keep_truncated``.

        Raises:
            ValueError: if ``h`` or ``actions`` is None, or the sizes differ.
        """
        if h is None or actions is None:
            raise ValueError("Conductor: observe needs the hidden states and the actions of the step")
        if self.settings.keep_truncated:
            self.buffer.add(h, actions, advantages)
        else:
            kept = ~truncated.bool()
            self.buffer.add(h[kept], actions[kept], advantages[kept])

    def update(self) -> dict[str, float] | None:
        """One AdamW step on everything in the meta-buffer, and an empty buffer, once M steps are in it.

        ``meta_loss`` and ``entropy`` (mean over the responses, nats) are from before the step, ``temperature`` from
        after it. ``lr_h_l1`` is lr * mean |h|_1, about how far one update can move a logit: what the speed of a
        collapse goes with. No update is made where no response is in the buffer, or where the gradient is not finite:
        the Conductor then stays as it was.
        """
        if len(self.buffer) < self.settings.update_every:
            return None
        batch = self.buffer.batch()
        self.buffer.clear()
        if batch.actions.numel() == 0:
            return None
        self.optimizer.zero_grad(set_to_none=True)
        loss = meta_loss(self.conductor, *batch, entropy_coef=self.settings.entropy_coef)
        loss.backward()
        if not all(p.grad is not None and p.grad.isfinite().all() for p in self.conductor.parameters()):
            logger.warning("Conductor: gradient not finite (meta_loss %s); this meta-update is left out", loss.item())
            return None
        with torch.no_grad():
            probs = self.conductor.probs(batch.h)
        self.optimizer.step()
        self._updates += 1
        return {
            "meta_loss": loss.item(),
            "entropy": -(probs * probs.log()).sum(dim=1).mean().item(),
            "temperature": self.conductor.temperature,
            "lr_h_l1": self.settings.lr * batch.h.abs().sum(dim=1).mean().item(),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "hidden_size": self.conductor.hidden_size,
            "reward_names": list(self.conductor.reward_names),
            "conductor": self.conductor.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "buffer": self.buffer.state_dict(),
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise ValueError(f"Conductor: the checkpoint has no {missing[0]}")
        self.conductor.check(state["hidden_size"], state["reward_names"])
        self.conductor.load_state_dict(state["conductor"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.buffer.load_state_dict(state["buffer"])
        self._updates = state["updates"]


ORCHESTRATOR_KINDS = ("conductor", "equal", "single", "random", "fixed")


def make_orchestrator(
    kind: str,
    reward_names: Sequence[str],
    *,
    settings: ConductorSettings | None = None,
    component: str | None = None,
    fixed_weights: Sequence[float] | None = None,
) -> Orchestrator:
    """The orchestrator that ``conductor.kind`` names.

    Args:
        kind: one of ``ORCHESTRATOR_KINDS``.
        reward_names: names of the K components.
        settings: for ``conductor``, ignored by the others.
        component: for ``single``: the name of the one component that counts.
        fixed_weights: for ``fixed``: K weights, in the order of ``reward_names``; only their proportions count.

    Raises:
        ValueError: if the kind is unknown, or what it needs is missing or does not fit.
    """
    size = len(reward_names)
    if kind == "conductor":
        if settings is None:
            raise ValueError("conductor.kind conductor needs the Conductor's settings")
        return LearnedOrchestrator(settings, reward_names)
    if kind == "equal":
        return FixedOrchestrator([1.0] * size)
    if kind == "random":
        return RandomOrchestrator(size)
    if kind == "single":
        if component not in reward_names:
            raise ValueError(f"conductor.kind single: no component {component!r}; there are: {', '.join(reward_names)}")
        return FixedOrchestrator([float(name == component) for name in reward_names])
    if kind == "fixed":
        if fixed_weights is None or len(fixed_weights) != size:
            names = ", ".join(reward_names)
            raise ValueError(f"conductor.kind fixed needs {size} weights ({names}), got {fixed_weights}")
        return FixedOrchestrator(fixed_weights)
    raise ValueError(f"unknown conductor.kind {kind!r}; there are: {', '.join(ORCHESTRATOR_KINDS)}")
