"""What the Conductor learns from: the policy's advantages (the paper), or agreement with a trusted signal."""

from typing import Literal

import torch
from torch import Tensor

from openrlhf_maestro.conductor.conductor import Conductor
from openrlhf_maestro.objective import constant_groups, group_advantages

_STD_EPSILON = 1e-4  # as in the advantages [4]: a group that hardly differs says little


def meta_loss(conductor: Conductor, h: Tensor, actions: Tensor, advantages: Tensor, entropy_coef: float) -> Tensor:
    """The paper's meta-objective [3, 5, 6]: -mean(A log pi(a|h)) - entropy_coef * mean H(pi(.|h)).

    Args:
        conductor: gradients flow to its parameters only.
        h: (..., H) hidden states of the responses.
        actions: (...) int64, the emphasis each response was given.
        advantages: (...) group-relative advantages of the policy; taken as constants.
        entropy_coef: lambda_ent, the weight of the entropy (nats) of pi.

    Returns:
        () float32. NaN where there are no responses, as the mean of nothing is.
    """
    log_probs = conductor.probs(h.detach()).log()
    chosen = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    return -(advantages.detach() * chosen).mean() - entropy_coef * _entropy(log_probs).mean()


def pairwise_loss(conductor: Conductor, h: Tensor, actions: Tensor, advantages: Tensor, kept: Tensor) -> Tensor:
    """Table 5's "+pairwise", for which the paper gives no formula; ours compares the responses of a group.

    The mean over pairs j < j' of a group, both kept, of -(A_j - A_j') (log pi(a_j|h_j) - log pi(a_j'|h_j')) / 2.

    Args:
        conductor: gradients flow to its parameters only.
        h: (N, G, H) hidden states.
        actions: (N, G) int64.
        advantages: (N, G); taken as constants.
        kept: (N, G) bool.

    Returns:
        () float32; 0, with zero gradients, where there is no pair.
    """
    chosen = conductor.probs(h.detach()).log().gather(-1, actions.unsqueeze(-1)).squeeze(-1)  # (N, G)
    j, other = torch.triu_indices(h.shape[1], h.shape[1], offset=1)
    products = (advantages[:, j] - advantages[:, other]).detach() * (chosen[:, j] - chosen[:, other])  # (N, pairs)
    paired = kept[:, j] & kept[:, other]
    return -torch.where(paired, products, 0.0).sum() / (2 * paired.sum().clamp(min=1))


def joint_loss(
    conductor: Conductor,
    h: Tensor,
    components: Tensor,
    log_prob_mean: Tensor,
    kept: Tensor,
    entropy_coef: float,
    scale: Literal["group", "none"] = "group",
) -> Tensor:
    """Table 6's joint schedule as we read it: -mean A_ij(w) log p_ij - entropy_coef * mean H(pi), with w = pi.

    A_ij(w) is the advantage of the scalar reward as a function of the weights. log p_ij, the mean token log-probability
    of the response, stands where the policy's objective has the ratio. The ratio itself is 1 for every response when
    there is one update a rollout, and what A is then multiplied by is the same for all (``grpo``: the advantages of a
    group sum to 0 for any weights, so the gradient is 0) or the response's length (``dr_grpo``).

    All responses count in their group's mean and std; the mean of the loss is over those that are kept. A group whose
    rewards are equal adds nothing: its advantages are 0 by decision, not as a function of the weights.

    Args:
        conductor: gradients flow to its parameters only.
        h: (N, G, H) hidden states.
        components: (N, G, K) normalised component rewards, NaN where missing.
        log_prob_mean: (N, G) nats a token; a constant.
        kept: (N, G) bool, at least one.
        entropy_coef: weight of the entropy (nats) of pi.
        scale: as in ``group_advantages``.

    Returns:
        () float32.
    """
    probs = conductor.probs(h.detach())
    # In float64: the std of rewards that hardly differ has a gradient too.
    rewards = _mix(components.double(), probs.double())  # (N, G)
    varies = ~constant_groups(rewards.detach())
    gain = group_advantages(rewards[varies], scale) * log_prob_mean.detach()[varies]
    total = torch.where(kept[varies], gain, 0.0).sum().float()
    return -total / kept.sum() - entropy_coef * _entropy(probs.log())[kept].mean()


def _mix(components: Tensor, weights: Tensor) -> Tensor:
    """(..., K) x 2 -> (...): sum_k w_k z_k, the weight of missing components shared among the others; NaN if all are.

    The scalar reward of the policy, written here because rewards and Conductor do not import each other.
    """
    present = ~components.isnan()
    used = weights * present
    mixed = (used * components.nan_to_num()).sum(dim=-1) / torch.where(present.any(dim=-1), used.sum(dim=-1), 1.0)
    return torch.where(present.any(dim=-1), mixed, torch.nan)


def anchor_loss(conductor: Conductor, h: Tensor, components: Tensor, anchor: Tensor, entropy_coef: float) -> Tensor:
    """Ours: move pi towards the components that agree with a trusted signal within the group.

    With m_jk from ``anchor_agreement`` the loss is -mean_j sum_k pi_k(h_j) (m_jk - sum_l pi_l m_jl), the baseline
    detached, minus the entropy bonus of ``meta_loss``. It is the exact expectation over emphases, nothing is sampled.
    The baseline moves no gradient (the sum over k of the gradients of pi_k is 0); it makes the value of the first term
    0 for any pi, so progress is to be read from the meta-reward mean_j sum_k pi_k m_jk, not from the loss.

    Args:
        conductor: gradients flow to its parameters only.
        h: (N, G, H) hidden states.
        components: (N, G, K) component rewards, NaN where missing.
        anchor: (N, G) the trusted signal, NaN where a response was not scored by it; such responses take no part.
        entropy_coef: weight of the entropy (nats) of pi.

    Returns:
        () float32; 0, with zero gradients, where no response has an anchor.

    Raises:
        ValueError: if the shapes do not fit.
    """
    agreement = anchor_agreement(components, anchor)  # (N, G, K)
    probs = conductor.probs(h.detach())
    if probs.shape != agreement.shape:
        raise ValueError(f"anchor_loss: h gives {tuple(probs.shape)}, components are {tuple(agreement.shape)}")
    anchored = ~anchor.isnan()  # (N, G)
    baseline = (probs * agreement).sum(dim=-1, keepdim=True).detach()
    gain = (probs * (agreement - baseline)).sum(dim=-1)
    per_response = -gain - entropy_coef * _entropy(probs.log())
    return torch.where(anchored, per_response, 0.0).sum() / anchored.sum().clamp(min=1)


@torch.no_grad()
def anchor_agreement(components: Tensor, anchor: Tensor) -> Tensor:
    """The meta-reward of emphasis k on response j: m_jk = z_jk s_j, both standardised in the group.

    Standardised is (x - mean) / (std + 1e-4) with the sample standard deviation (n - 1) over the values present. What
    is constant in its group, or present fewer than twice, standardises to exactly 0; so does a missing value. A score
    of -inf (the response itself is at fault) takes no part in mean and std and is 1 below the lowest other.

    Args:
        components: (N, G, K), NaN where missing.
        anchor: (N, G), NaN where missing, -inf where the response is at fault.

    Returns:
        (N, G, K) float32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if components.dim() != 3 or components.shape[:2] != anchor.shape:
        shapes = f"{tuple(components.shape)} and {tuple(anchor.shape)}"
        raise ValueError(f"anchor: expected components (N, G, K) and anchor (N, G), got {shapes}")
    # A component is compared with the anchor over the responses that have one.
    compared = components.float().masked_fill(anchor.isnan().unsqueeze(-1), torch.nan)
    return _standardise(compared) * _standardise(anchor.float().unsqueeze(-1))


def _standardise(values: Tensor) -> Tensor:
    """(N, G, ...) -> same shape, over dimension 1; NaN is left out and becomes 0, -inf 1 below the lowest."""
    valid = values.isfinite()
    count = valid.sum(dim=1, keepdim=True)
    low = values.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
    mean = values.masked_fill(~valid, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)
    deviation = (values - mean).masked_fill(~valid, 0.0)
    std = (deviation.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    # Asked of the values themselves: the mean of equal values may be off by a rounding error.
    scores = (deviation / (std + _STD_EPSILON)).masked_fill(low >= high, 0.0)
    # The valid scores have mean 0, so the 0 of what is missing is never the lowest alone.
    below = torch.where(count > 0, scores.amin(dim=1, keepdim=True) - 1, 0.0)
    return torch.where(values.isneginf(), below, scores)


def _entropy(log_probs: Tensor) -> Tensor:
    """(..., K) -> (...), nats."""
    return -(log_probs.exp() * log_probs).sum(dim=-1)
