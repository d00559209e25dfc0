"""Standardisation inside a group of responses to one prompt."""

import torch
from torch import Tensor

_STD_EPSILON = 1e-4  # as in the advantages


def group_zscore(values: Tensor) -> Tensor:
    """(x - mean) / (std + 1e-4) over the valid values of each group, with the sample standard deviation (n - 1).

    - Equal values, and one that is alone, are exactly 0.
    - NaN is *missing*: it stays NaN and takes no part.
    - ``-inf`` is *the response's own fault*: 1 below the lowest valid value's score, so that being at fault never pays,
      and 0 where no value of the group is valid.

    Args:
        values: (N, G), floating point.

    Returns:
        (N, G), dtype of ``values``: NaN where missing.

    Raises:
        ValueError: if ``values`` is not a two-dimensional floating point tensor.
    """
    if values.dim() != 2 or not values.is_floating_point():
        raise ValueError(
            f"group_zscore: expected a floating point tensor (N, G), got {values.dtype} {tuple(values.shape)}"
        )
    valid = values.isfinite()
    count = valid.sum(dim=1, keepdim=True)
    mean = values.masked_fill(~valid, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)
    deviation = (values - mean).masked_fill(~valid, 0.0)
    std = (deviation.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    low = values.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
    # Asked of the values themselves: the mean of equal values may be off by a rounding error.
    scores = (deviation / (std + _STD_EPSILON)).masked_fill(low >= high, 0.0)
    below = torch.where(count > 0, scores.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True) - 1, 0.0)
    scores = torch.where(values.isneginf(), below, scores)
    return scores.masked_fill(values.isnan(), torch.nan)
