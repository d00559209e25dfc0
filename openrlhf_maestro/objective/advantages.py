"""Group-relative advantages [4]."""

from typing import Literal

import torch
from torch import Tensor

_STD_EPSILON = 1e-4


def group_advantages(rewards: Tensor, scale: Literal["group", "none"] = "group") -> Tensor:
    """A_ij = (R_ij - mean_j R_ij) / (std_j R_ij + 1e-4), with the sample standard deviation (n - 1).

    Two groups of cases are decided, not computed. Where all rewards of a group are equal the advantages are exactly 0:
    the mean of equal floats may be off by a rounding error, which the division would blow up. And a reward that is NaN
    (every component of that response was missing) is left out of its group's mean and std and gets advantage 0: the
    response teaches nothing, the others are compared as in a smaller group. One reward left alone is a constant group.

    Args:
        rewards: (N, G) scalar rewards of N groups of G responses, floating point, NaN where missing.
        scale: ``group`` divides by the group's std, ``none`` only subtracts the mean.

    Returns:
        (N, G), dtype of ``rewards``, finite.

    Raises:
        ValueError: if the shape, the scale or an infinite reward makes no sense.
    """
    if rewards.dim() != 2:
        raise ValueError(f"group_advantages: expected rewards (N, G), got {tuple(rewards.shape)}")
    if scale not in ("group", "none"):
        raise ValueError(f"group_advantages: scale must be 'group' or 'none', got {scale!r}")
    if rewards.isinf().any():
        raise ValueError("group_advantages: infinite reward")
    present = ~rewards.isnan()
    count = present.sum(dim=1, keepdim=True)
    mean = rewards.masked_fill(~present, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)
    advantages = (rewards - mean).masked_fill(~present, 0.0)
    if scale == "group":
        std = (advantages.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        advantages = advantages / (std + _STD_EPSILON)
    return advantages.masked_fill(constant_groups(rewards).unsqueeze(1), 0.0)


def constant_groups(rewards: Tensor) -> Tensor:
    """Which groups have nothing to compare: (N, G) rewards, NaN where missing -> (N,) bool.

    True where all rewards present are exactly equal, or fewer than two are present. The mean of this is the metric
    ``advantage/frac_zero_std``.
    """
    missing = rewards.isnan()
    lowest = rewards.masked_fill(missing, torch.inf).amin(dim=1)
    highest = rewards.masked_fill(missing, -torch.inf).amax(dim=1)
    return lowest >= highest
