"""The credit rules: what each makes of the meta-buffer. One function a rule; the orchestrator stores and steps."""

from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from openrlhf_maestro.conductor.buffer import Observation
from openrlhf_maestro.conductor.conductor import Conductor
from openrlhf_maestro.conductor.losses import anchor_agreement, anchor_loss, joint_loss, meta_loss, pairwise_loss


class Credit(NamedTuple):
    """What one update learns from."""

    loss: Tensor  # () float32, differentiable in the Conductor
    part: Tensor  # (B,) bool: the responses that took part; where there is none, no update is made
    metrics: dict[str, float]  # of this rule alone, from before the update


class CreditRule(Protocol):
    """A rule, its coefficients bound."""

    def __call__(self, conductor: Conductor, seen: Observation, kept: Tensor) -> Credit:
        """The credit of B responses, of which ``kept``, (B,) bool, are not left out for being truncated.

        Raises:
            ValueError: if ``seen`` lacks what the rule reads.
        """


def advantage_credit(
    conductor: Conductor, seen: Observation, kept: Tensor, *, entropy_coef: float, pairwise_coef: float
) -> Credit:
    """The paper's: the emphasis of a response is credited with the policy's advantage, see ``meta_loss``."""
    h, actions = _needed("hidden states", seen.h), _needed("sampled actions", seen.actions)
    loss = meta_loss(conductor, h[kept], actions[kept], seen.advantages[kept], entropy_coef)
    if pairwise_coef:
        grouped = (seen.groups(tensor) for tensor in (h, actions, seen.advantages, kept))
        loss = loss + pairwise_coef * pairwise_loss(conductor, *grouped)
    return Credit(loss, kept, {})


def joint_credit(
    conductor: Conductor, seen: Observation, kept: Tensor, *, entropy_coef: float, scale: Literal["group", "none"]
) -> Credit:
    """The advantages as a function of the weights, see ``joint_loss``."""
    h = seen.groups(_needed("hidden states", seen.h))
    components, log_prob_mean = seen.groups(seen.components), seen.groups(seen.log_prob_mean)
    loss = joint_loss(conductor, h, components, log_prob_mean, seen.groups(kept), entropy_coef, scale)
    return Credit(loss, kept, {})


def anchor_credit(conductor: Conductor, seen: Observation, kept: Tensor, *, entropy_coef: float) -> Credit:
    """Agreement with the anchor, see ``anchor_loss``; ``meta_reward`` is mean sum_k pi_k m_jk, which it raises.

    A truncated response that is left out counts as one that the anchor did not score.
    """
    h = seen.groups(_needed("hidden states", seen.h))
    anchor = seen.groups(_needed("an anchor", seen.anchor).masked_fill(~kept, float("nan")))
    components = seen.groups(seen.components)
    loss = anchor_loss(conductor, h, components, anchor, entropy_coef)
    anchored = ~anchor.isnan()
    reward = (conductor.probs(h).detach() * anchor_agreement(components, anchor)).sum(dim=-1)  # (N, G)
    return Credit(loss, anchored.flatten(), {"meta_reward": reward[anchored].mean().item()})


def _needed(what: str, tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError(f"Conductor: this credit needs {what}, the observed step has none")
    return tensor
