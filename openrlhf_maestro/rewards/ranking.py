"""Rank normalisation inside a group of responses to one prompt."""

import torch
from torch import Tensor


def group_rank(values: Tensor) -> Tensor:
    """Rank every value among the G responses of its group, scaled to [0, 1].

    The best gets 1, the worst 0, ranks between them are equidistant and ties share the average of their ranks, so that
    a group of equal values gets 0.5 each.

    - NaN is *missing*: it stays NaN and takes no rank, the others are ranked as if the group were smaller. A value that
      is alone in its group therefore gets 0.5: it ties with everything there is.
    - ``-inf`` is *the response's own fault*: exactly 0, also where several or all of a group are at fault. It does take
      a rank, below every valid value, so that valid responses gain from one that is not: ``[-inf, 1, 2]`` gives
      ``[0, 0.5, 1]``, and ``[-inf, 3, 3]`` gives ``[0, 0.75, 0.75]``.

    Args:
        values: (N, G), floating point.

    Returns:
        (N, G), dtype of ``values``: in [0, 1], NaN where missing.

    Raises:
        ValueError: if ``values`` is not a two-dimensional floating point tensor.
    """
    if values.dim() != 2 or not values.is_floating_point():
        raise ValueError(
            f"group_rank: expected a floating point tensor (N, G), got {values.dtype} {tuple(values.shape)}"
        )
    mine, others = values.unsqueeze(2), values.unsqueeze(1)  # (N, G, 1), (N, 1, G); NaN compares false with everything
    below = (others < mine).sum(dim=2)  # (N, G)
    tied = (others == mine).sum(dim=2)  # (N, G), itself included
    missing = values.isnan()
    ranked = (~missing).sum(dim=1, keepdim=True)  # (N, 1)
    position = below.to(values.dtype) + (tied - 1).to(values.dtype) / 2
    rank = torch.where(ranked > 1, position / (ranked - 1).clamp(min=1), 0.5)
    rank = rank.masked_fill(values.isneginf(), 0.0)
    return rank.masked_fill(missing, torch.nan)
