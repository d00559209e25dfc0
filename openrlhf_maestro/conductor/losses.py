"""How the Conductor learns: from the policy's advantages (the paper), or from agreement with a trusted signal."""

import torch
from torch import Tensor

from openrlhf_maestro.conductor.conductor import Conductor

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
    is constant in its group, or present fewer than twice, standardises to exactly 0; so does a missing value.

    Args:
        components: (N, G, K), NaN where missing.
        anchor: (N, G), NaN where missing.

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
    """(N, G, ...) -> same shape, over dimension 1; NaN is left out and becomes 0."""
    present = ~values.isnan()
    count = present.sum(dim=1, keepdim=True)
    low = values.masked_fill(~present, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(~present, -torch.inf).amax(dim=1, keepdim=True)
    mean = values.masked_fill(~present, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)
    deviation = (values - mean).masked_fill(~present, 0.0)
    std = (deviation.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    # Asked of the values themselves: the mean of equal values may be off by a rounding error.
    return (deviation / (std + _STD_EPSILON)).masked_fill(low >= high, 0.0)


def _entropy(log_probs: Tensor) -> Tensor:
    """(..., K) -> (...), nats."""
    return -(log_probs.exp() * log_probs).sum(dim=-1)
