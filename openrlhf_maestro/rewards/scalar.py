"""From K component rewards to the one scalar reward of a response."""

import torch
from torch import Tensor

# How far from 1 the sum of weights on the simplex can be, in units of their type's rounding.
_ROUNDING_UNITS = 16


def scalarize(components: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum R = sum_k w_k r_k of a response's components [3.2].

    A missing component (NaN) is left out and its weight shared among the others in proportion to theirs, so that the
    total weight of a response does not depend on how many of its scores arrived.

    Args:
        components: (..., K), normalised component rewards, NaN where missing.
        weights: (..., K), non-negative, on the simplex along the last dimension. Broadcasts with ``components``.
            Gradients flow to the weights.

    Returns:
        (...): the scalar rewards. NaN where no component with a weight above 0 is present: there is nothing to go by.

    Raises:
        ValueError: if the last dimensions differ.
    """
    if components.shape[-1:] != weights.shape[-1:]:
        shapes = f"{tuple(components.shape)} and {tuple(weights.shape)}"
        raise ValueError(f"scalarize: components and weights must agree in K, got {shapes}")
    dtype = torch.promote_types(components.dtype, weights.dtype)
    # In float64, and with weights that sum to 1 but for rounding summing to 1: responses whose components are all equal
    # get exactly that reward, however their weights differ, or their group would not be constant.
    unit = torch.finfo(weights.dtype).eps
    components, weights = components.double(), weights.double()
    present = ~components.isnan()
    used = weights * present
    total, kept = weights.sum(dim=-1), used.sum(dim=-1)
    rounding = (total - 1).detach()
    total = total - rounding.masked_fill(rounding.abs() > _ROUNDING_UNITS * unit, 0.0)
    weighted = (used * components.masked_fill(~present, 0.0)).sum(dim=-1)
    mean = weighted / torch.where(kept > 0, kept, 1.0)
    return torch.where(kept > 0, mean * total, torch.nan).to(dtype)
