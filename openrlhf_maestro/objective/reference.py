"""Synchronising the KL reference with the policy."""

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def mix_reference(
    ref_state: Mapping[str, Tensor], policy_state: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """ref <- alpha * policy + (1 - alpha) * ref, tensor by tensor (TRL's ``ref_model_mixup_alpha``).

    Computed in float32 at least and rounded once. Tensors that are not floating point (counters, position indices)
    cannot be averaged; the policy's value is taken.

    Args:
        ref_state: the reference's tensors by name.
        policy_state: the policy's, of the same names and shapes.
        alpha: share of the policy, in [0, 1]; 0 returns the reference, 1 the policy.

    Returns:
        New tensors, on the devices and in the dtypes of the reference; the arguments are left as they are.

    Raises:
        ValueError: if ``alpha`` is outside [0, 1], or naming the tensor, if one is missing or has another shape.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"mix_reference: alpha must be in [0, 1], got {alpha}")
    unmatched = sorted(ref_state.keys() ^ policy_state.keys())
    if unmatched:
        owner = "the reference" if unmatched[0] in ref_state else "the policy"
        raise ValueError(f"mix_reference: only {owner} has {unmatched[0]!r} ({len(unmatched)} tensors do not match)")
    mixed = {}
    for name, ref in ref_state.items():
        policy = policy_state[name]
        if policy.shape != ref.shape:
            raise ValueError(
                f"mix_reference: {name!r} is {tuple(ref.shape)} in the reference, {tuple(policy.shape)} in the policy"
            )
        if ref.is_floating_point():
            dtype = torch.promote_types(ref.dtype, torch.float32)
            policy = alpha * policy.to(ref.device, dtype) + (1 - alpha) * ref.to(dtype)
        mixed[name] = policy.to(ref.device, ref.dtype, copy=True)
    return mixed
