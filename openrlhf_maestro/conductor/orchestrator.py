"""Who sets the weights of a response's rewards: a learned Conductor, or one of the fixed rules it is compared with."""

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from openrlhf_maestro.conductor.buffer import MetaBuffer, Observation
from openrlhf_maestro.conductor.conductor import Conductor
from openrlhf_maestro.conductor.credit import CreditRule, advantage_credit, anchor_credit, joint_credit

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

    def observe(self, step: Observation) -> None:
        """Take in one step. Call once a step, after ``weights``."""

    def update(self) -> dict[str, float] | None:
        """Learn, if it is time to. Call once a step, after ``observe``.

        Returns:
            Metrics of the update (``meta_loss``, ``entropy``, ``temperature``, ``lr_h_l1``, with an anchor
            ``meta_reward``), None where none was made.
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
    keep_truncated: bool = False  # whether responses cut at the length limit are learned from
    credit: Literal["advantage", "anchor"] = "advantage"
    schedule: Literal["async", "joint"] = "async"  # joint: an update every step, by the advantages' gradient
    pairwise_coef: float = 0.0  # credit advantage: weight of the comparisons of pairs
    scale_rewards: Literal["group", "none"] = "group"  # schedule joint: how the policy's advantages are made
    context_layer: str = "last"
    context_pooling: str = "last_token"
    init_from: str | None = None  # folder of a saved Conductor, whose temperature and floor then hold
    freeze: bool = False  # no updates

    @property
    def rule(self) -> Literal["frozen", "joint", "anchor", "advantage"]:
        """What the options come to. Only ``advantage`` needs, and so draws, emphases."""
        if self.freeze:
            return "frozen"
        return "joint" if self.schedule == "joint" else self.credit


class LearnedOrchestrator(Orchestrator):
    """The Conductor with its optimiser and its meta-buffer: one update of the slow time scale every M steps [E]."""

    needs_hidden = True

    def __init__(self, settings: ConductorSettings, reward_names: Sequence[str]) -> None:
        """A Conductor at its start, or the one in ``settings.init_from``.

        Raises:
            ValueError: if a setting is out of range, or the saved Conductor is missing or made for something else.
        """
        if settings.update_every < 1:
            raise ValueError(f"Conductor: update_every must be at least 1, got {settings.update_every}")
        if not 0 <= settings.emphasis <= 1:
            raise ValueError(f"Conductor: emphasis must be in [0, 1], got {settings.emphasis}")
        self.settings = settings
        self.conductor = _conductor(settings, reward_names)
        # The paper names no weight decay; decaying log tau would pull the temperature to 1.
        self.optimizer = torch.optim.AdamW(self.conductor.parameters(), lr=settings.lr, weight_decay=0.0)
        self.buffer = MetaBuffer()
        self._credit = _credit_rule(settings)
        self._update_every = 1 if settings.rule == "joint" else settings.update_every
        self._updates = 0

    @property
    def updates(self) -> int:
        return self._updates

    @torch.no_grad()
    def weights(self, h: Tensor | None, batch_size: int, generator: torch.Generator | None = None) -> Orchestration:
        """See ``Orchestrator.weights``. Where the credit needs no emphasis none is drawn, and w = pi.

        Raises:
            ValueError: if ``h`` is None or has not ``batch_size`` rows.
        """
        if h is None or h.shape[0] != batch_size:
            found = None if h is None else tuple(h.shape)
            raise ValueError(f"Conductor: expected hidden states of {batch_size} responses, got {found}")
        actions = self.conductor.sample(h, generator)[0] if self.settings.rule == "advantage" else None
        return Orchestration(
            weights=self.conductor.weights(h, actions, self.settings.emphasis),
            actions=actions,
            probs=self.conductor.probs(h),
        )

    def observe(self, step: Observation) -> None:
        """See ``Orchestrator.observe``.

        Raises:
            ValueError: if the hidden states are missing, or the sizes differ.
        """
        if step.h is None:
            raise ValueError("Conductor: observe needs the hidden states of the step")
        if self._credit is not None:
            self.buffer.add(step)

    def update(self) -> dict[str, float] | None:
        """One AdamW step on what is in the meta-buffer, and an empty buffer, once M steps are in it.

        ``meta_loss``, ``meta_reward`` and ``entropy`` (mean over the responses that took part, nats) are from before
        the step, ``temperature`` from after it. ``lr_h_l1`` is lr * mean |h|_1, about how far one update can move a
        logit: what the speed of a collapse goes with. No update is made where no response takes part, or where the step
        would leave something that is not finite: the Conductor then stays as it was.
        """
        if self._credit is None or len(self.buffer) < self._update_every:
            return None
        seen = self.buffer.batch()
        self.buffer.clear()
        loss, part, metrics = self._credit(self.conductor, seen, self.settings.keep_truncated | ~seen.truncated)
        if seen.h is None or not part.any():
            return None
        h = seen.h[part]
        with torch.no_grad():
            probs = self.conductor.probs(h)
        if not self._step(loss, h):
            return None
        self._updates += 1
        return metrics | {
            "meta_loss": loss.item(),
            "entropy": -(probs * probs.log()).sum(dim=1).mean().item(),
            "temperature": self.conductor.temperature,
            "lr_h_l1": self.settings.lr * h.abs().sum(dim=1).mean().item(),
        }

    def _step(self, loss: Tensor, h: Tensor) -> bool:
        """One optimiser step; False, and everything as it was, where a gradient or what follows is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if not all(p.grad is not None and p.grad.isfinite().all() for p in self.conductor.parameters()):
            logger.warning("Conductor: gradient not finite (meta_loss %s); this meta-update is left out", loss.item())
            return False
        before = copy.deepcopy((self.conductor.state_dict(), self.optimizer.state_dict()))
        self.optimizer.step()
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        with torch.no_grad():
            results = [*self.conductor.parameters(), *moments, self.conductor.probs(h)]
        if all(result.isfinite().all() for result in results):
            return True
        self.conductor.load_state_dict(before[0])
        self.optimizer.load_state_dict(before[1])
        logger.warning("Conductor: not finite after the step (meta_loss %s); this meta-update is undone", loss.item())
        return False

    def state_dict(self) -> dict[str, Any]:
        return {
            "rule": self.settings.rule,
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
        if state["rule"] != self.settings.rule:
            raise ValueError(f"Conductor: the rule of the checkpoint is {state['rule']}, not {self.settings.rule}")
        self.conductor.check(state["hidden_size"], state["reward_names"])
        self.conductor.load_state_dict(state["conductor"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr  # the configuration's, not the checkpoint's
        self.buffer.load_state_dict(state["buffer"])
        self._updates = state["updates"]


def _conductor(settings: ConductorSettings, reward_names: Sequence[str]) -> Conductor:
    if settings.init_from is None:
        return Conductor(
            settings.hidden_size,
            reward_names,
            temperature=settings.temperature,
            min_prob=settings.min_prob,
            learn_temperature=settings.learn_temperature,
            context_layer=settings.context_layer,
            context_pooling=settings.context_pooling,
        )
    if not Path(settings.init_from).is_dir():  # else it would be looked for on the hub
        raise ValueError(f"Conductor: there is no folder {settings.init_from}")
    conductor: Conductor = Conductor.from_pretrained(settings.init_from)
    conductor.check(settings.hidden_size, reward_names, settings.context_layer, settings.context_pooling)
    return conductor


def _credit_rule(settings: ConductorSettings) -> CreditRule | None:
    if settings.rule == "frozen":
        return None
    if settings.rule == "joint":
        return partial(joint_credit, entropy_coef=settings.entropy_coef, scale=settings.scale_rewards)
    if settings.rule == "anchor":
        return partial(anchor_credit, entropy_coef=settings.entropy_coef)
    return partial(advantage_credit, entropy_coef=settings.entropy_coef, pairwise_coef=settings.pairwise_coef)


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
