"""Which tokens count as high-entropy ones."""

import torch
from torch import Tensor


def entropy_threshold(entropy: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """The entropy from which on a token belongs to the top ``quantile`` of the unmasked tokens.

    This is the (1 - quantile) quantile, interpolated linearly, as in ``torch.quantile`` and TRL; a token is kept if
    its entropy is at or above it. Written with two order statistics, because ``torch.quantile`` refuses more than 2^24
    values and an update of a large run can have more tokens than that.

    Args:
        entropy: entropy of each token in nats, any shape; of a whole update across ranks where that is meant.
        mask: same shape, non-zero for the tokens that count.
        quantile: share of tokens to keep, in (0, 1].

    Returns:
        () at least float32; ``+inf`` where no token counts.

    Raises:
        ValueError: if ``quantile`` is outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"top entropy quantile must be in (0, 1], got {quantile}")
    values = entropy.detach()[mask.bool()]
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if values.numel() == 0:
        return values.new_tensor(torch.inf)
    values = values.sort().values
    # The rank is rounded to the values' dtype, as torch.quantile does: the same tokens must pass at the boundary.
    last = values.numel() - 1
    rank = values.new_tensor(1 - quantile) * last
    below, above = rank.long().clamp(max=last), rank.ceil().long().clamp(max=last)
    return torch.lerp(values[below], values[above], rank - below)
