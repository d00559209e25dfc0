"""Weights that correct for responses sampled by an engine whose probabilities differ a little from the trainer's."""

from typing import Literal

import torch
from torch import Tensor

from openrlhf_maestro.objective.checks import check_option, check_shapes

CorrectionLevel = Literal["token", "seq"]
CorrectionMode = Literal["mask", "clip"]
CorrectionGating = Literal["ratio", "binary_kl", "tv"]

# Probabilities stay this far from 0 and 1 in the divergences, as in OpenRLHF: their logarithms must be finite.
_PROB_MARGIN = 1e-6


def rollout_correction(
    old_logp: Tensor,
    rollout_logp: Tensor,
    mask: Tensor,
    *,
    level: CorrectionLevel,
    mode: CorrectionMode,
    gating: CorrectionGating,
    threshold: tuple[float, float],
) -> Tensor:
    """Importance weights p_trainer / p_rollout of the response tokens, gated: OpenRLHF 0.11.2's ``is_correction_*``.

    With p the rollout engine's probability of a sampled token and q the trainer's for the same weights, the gate reads
    the ratio q / p, the divergence KL(p || q) of "this token or another", or the total variation |p - q|. A unit whose
    value lies outside ``threshold`` is dropped (``mask``: weight 0, the others keep their own q / p), or its ratio is
    brought to the nearer bound (``clip``).

    Args:
        old_logp: (B, A) the trainer's log-probabilities before the update; anything where masked.
        rollout_logp: (B, A) the rollout engine's, of the same tokens at the same temperature.
        mask: (B, A), 1 for response tokens, else 0.
        level: what a unit is: ``token``, or ``seq``, a response by its mean over tokens (of the ratio the geometric
            one).
        mode: ``mask`` or ``clip``; ``clip`` is defined for ``token`` and ``ratio`` only.
        gating: ``ratio``, ``binary_kl`` (nats) or ``tv`` (a difference of probabilities).
        threshold: lowest and highest value that passes, both included. A divergence has no lower bound: 0.

    Returns:
        (B, A) to be multiplied into the policy loss; 0 where masked, without gradient.

    Raises:
        ValueError: if shapes or options do not fit.
    """
    check_shapes(mask, old_logp=old_logp, rollout_logp=rollout_logp)
    check_option("level", level, CorrectionLevel)
    check_option("mode", mode, CorrectionMode)
    check_option("gating", gating, CorrectionGating)
    low, high = threshold
    if mode == "clip" and (level != "token" or gating != "ratio"):
        raise ValueError(f"rollout_correction: clip needs level token and gating ratio, got {level} and {gating}")
    if not 0 <= low < high or (gating != "ratio" and low > 0):
        raise ValueError(f"rollout_correction: threshold {threshold} does not fit gating {gating}")
    kept = mask.bool()
    old_logp, rollout_logp = (tensor.detach().masked_fill(~kept, 0.0) for tensor in (old_logp, rollout_logp))
    log_ratio = old_logp - rollout_logp
    weights = log_ratio.exp()
    if mode == "clip":
        weights = weights.clamp(low, high)
    else:
        value = log_ratio if gating == "ratio" else _divergence(rollout_logp, old_logp, gating)
        if level == "seq":
            value = value.sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
        if gating == "ratio":
            value = value.exp()
        weights = torch.where((value >= low) & (value <= high), weights, 0.0)
    return weights.masked_fill(~kept, 0.0)


def _divergence(rollout_logp: Tensor, old_logp: Tensor, gating: CorrectionGating) -> Tensor:
    """(B, A), (B, A) -> (B, A): between the two Bernoulli distributions "this token or another"."""
    p, q = (logp.exp().clamp(_PROB_MARGIN, 1 - _PROB_MARGIN) for logp in (rollout_logp, old_logp))
    if gating == "tv":
        return (p - q).abs()
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
