"""The policy's losses [C, Table 7], with TRL's meaning of each word.

A response that is to be left out (one cut at the length limit) is a row of zeros in ``mask``: no loss and no KL. As in
TRL it still counts as a response in the denominators of ``dr_grpo`` (B * max completion length) and ``grpo`` (B), so
leaving it out does not make the others weigh more; it has no tokens in that of ``token_mean``.

The losses here are sums over a denominator. A training loop that cuts an update into micro-batches and ranks adds up
``loss_denominator`` over all of them once, passes the total in, and the losses of the pieces then add up to the loss of
the whole. Where gradients are averaged over the pieces (data-parallel ranks, accumulation steps) instead of summed, the
loop multiplies the loss by their number.
"""

from typing import Literal

import torch
from torch import Tensor

from openrlhf_maestro.objective.checks import check_option, check_shapes
from openrlhf_maestro.objective.entropy import entropy_threshold as _entropy_threshold

LossType = Literal["dr_grpo", "grpo", "token_mean"]
ImportanceSamplingLevel = Literal["sequence", "token"]
EntropyMask = Literal["trl", "token"]
KlEstimator = Literal["k1", "k2", "k3"]


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    entropy: Tensor | None = None,
    *,
    loss_type: LossType,
    importance_sampling_level: ImportanceSamplingLevel,
    top_entropy_quantile: float,
    entropy_mask: EntropyMask,
    eps_low: float,
    eps_high: float,
    max_completion_length: int,
    entropy_threshold: Tensor | float | None = None,
    denominator: Tensor | float | None = None,
    correction: Tensor | None = None,
) -> Tensor:
    """The clipped surrogate -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A), reduced as ``loss_type`` says.

    Args:
        logp: (B, A) log-probabilities of the response tokens under the policy being trained; anything where masked.
        old_logp: (B, A) the same under the policy that is updated from; a constant.
        advantages: (B,).
        mask: (B, A), 1 for the tokens that count, else 0; a row of zeros leaves the response out.
        entropy: (B, A) token entropies in nats; needed where ``top_entropy_quantile`` is below 1.
        loss_type: ``dr_grpo`` the sum over tokens / (B * max_completion_length); ``grpo`` the mean over responses of
            the mean over their tokens; ``token_mean`` the mean over all unmasked tokens.
        importance_sampling_level: ``token`` r = exp(logp - old_logp) for each token; ``sequence`` r = exp of its mean
            over the response's unmasked tokens, the same for all of them.
        top_entropy_quantile: the loss is kept only on tokens whose entropy is in this top share of the unmasked tokens;
            1 keeps all. The denominator counts the others too.
        entropy_mask: with a quantile below 1, ``trl`` keeps the ratio of ``importance_sampling_level``. At ``sequence``
            level that selects no tokens: every token's loss is the same, and the response is rescaled by its share of
            high-entropy tokens. ``token`` makes the selection real: the ratio is the token's own, whatever the level.
        eps_low: clipping below 1.
        eps_high: clipping above 1.
        max_completion_length: limit of a response's length in tokens, the constant of ``dr_grpo``.
        entropy_threshold: entropy from which on a token is kept, from ``entropy_threshold`` over the whole update; None
            takes it from these B responses.
        denominator: what the sum is divided by, from ``loss_denominator`` over the whole update; None takes it from
            these B responses.
        correction: (B, A) weights of the tokens' losses, from ``rollout_correction``; a constant. None weighs none.

    Returns:
        () the loss, differentiable in ``logp`` (and in ``advantages``, if those are not constants).

    Raises:
        ValueError: if shapes or options do not fit.
    """
    check_shapes(mask, logp=logp, old_logp=old_logp)
    if advantages.shape != mask.shape[:1]:
        raise ValueError(f"policy_loss: expected advantages ({mask.shape[0]},), got {tuple(advantages.shape)}")
    check_option("importance_sampling_level", importance_sampling_level, ImportanceSamplingLevel)
    check_option("entropy_mask", entropy_mask, EntropyMask)
    masks_entropy = top_entropy_quantile < 1
    kept = mask.bool()
    log_ratio = torch.where(kept, logp - old_logp.detach(), 0.0)
    if importance_sampling_level == "sequence" and not (masks_entropy and entropy_mask == "token"):
        log_ratio = log_ratio.sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    ratio = log_ratio.exp()
    advantage = advantages.unsqueeze(1)
    loss = -torch.min(ratio * advantage, ratio.clamp(1 - eps_low, 1 + eps_high) * advantage).expand(mask.shape)
    if masks_entropy:
        if entropy is None:
            raise ValueError(f"policy_loss: top_entropy_quantile {top_entropy_quantile} needs the tokens' entropy")
        check_shapes(mask, entropy=entropy)
        if entropy_threshold is None:
            entropy_threshold = _entropy_threshold(entropy, mask, top_entropy_quantile)
        loss = torch.where(entropy.detach() >= entropy_threshold, loss, 0.0)
    if correction is not None:
        check_shapes(mask, correction=correction)
        loss = loss * correction.detach()
    return _reduce(loss, mask, loss_type, max_completion_length, denominator)


def kl_loss(
    logp: Tensor,
    ref_logp: Tensor,
    mask: Tensor,
    *,
    estimator: KlEstimator = "k3",
    loss_type: LossType,
    max_completion_length: int,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """KL(policy || reference) as a loss, reduced like the policy loss. The entropy mask does not apply to it.

    Args:
        logp: (B, A) log-probabilities under the policy being trained; anything where masked.
        ref_logp: (B, A) the same under the reference; a constant.
        mask: (B, A), 1 for the tokens that count, else 0.
        estimator: see ``kl_per_token``.
        loss_type: see ``policy_loss``.
        max_completion_length: see ``policy_loss``.
        denominator: see ``policy_loss``.

    Returns:
        () differentiable in ``logp``.

    Raises:
        ValueError: if shapes or options do not fit.
    """
    check_shapes(mask, logp=logp, ref_logp=ref_logp)
    kept = mask.bool()
    # Masked positions may hold anything: they are emptied before exp, so that no inf * 0 reaches the gradient.
    kl = kl_per_token(logp.masked_fill(~kept, 0.0), ref_logp.masked_fill(~kept, 0.0), estimator)
    return _reduce(kl, mask, loss_type, max_completion_length, denominator)


def reward_kl(log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, estimator: KlEstimator = "k3") -> Tensor:
    """KL(policy || reference) of whole responses, for a penalty on the scalar reward: R - beta * this.

    The sum over the response's tokens, not their mean, as in TRL's ``RLOOTrainer`` and in RLOO (Ahmadian et al. 2024),
    which take ``k1``. In a reward, where the estimate is not differentiated, ``k1`` is the one whose policy gradient is
    that of the KL.

    Args:
        log_probs: (B, A) log-probabilities of the response tokens under the policy that sampled them; anything where
            masked.
        ref_log_probs: (B, A) the same under the reference.
        mask: (B, A), 1 for response tokens, else 0; a response whose row is 0 has no KL.
        estimator: see ``kl_per_token``.

    Returns:
        (B,) nats, without gradient.

    Raises:
        ValueError: if shapes or the estimator do not fit.
    """
    check_shapes(mask, log_probs=log_probs, ref_log_probs=ref_log_probs)
    kl = kl_per_token(log_probs.detach(), ref_log_probs, estimator)
    return torch.where(mask.bool(), kl, 0.0).sum(dim=1)


def kl_per_token(logp: Tensor, ref_logp: Tensor, estimator: KlEstimator = "k3") -> Tensor:
    """Estimates of KL(policy || reference) from single tokens sampled from the policy; with d = logp - ref_logp:

    - ``k1`` d: unbiased, of either sign. As a loss its expected gradient is 0; it is meant for the reward.
    - ``k2`` d^2 / 2: biased, never negative; its expected gradient is that of the KL.
    - ``k3`` exp(-d) + d - 1: unbiased, never negative; the paper's and TRL's.

    Args:
        logp: any shape.
        ref_logp: same shape; a constant.
        estimator: one of the three.

    Returns:
        Same shape.

    Raises:
        ValueError: if the estimator is unknown.
    """
    check_option("estimator", estimator, KlEstimator)
    difference = logp - ref_logp.detach()
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return (-difference).expm1() + difference


def loss_denominator(mask: Tensor, loss_type: LossType, max_completion_length: int) -> Tensor:
    """What the sum of these responses' losses is divided by; additive over micro-batches and ranks.

    Args:
        mask: (B, A), 1 for the tokens that count, else 0.
        loss_type: ``dr_grpo`` B * max_completion_length; ``grpo`` B; ``token_mean`` the number of unmasked tokens.
        max_completion_length: limit of a response's length in tokens.

    Returns:
        () float32.

    Raises:
        ValueError: if the loss type is unknown or the length limit not positive.
    """
    check_option("loss_type", loss_type, LossType)
    if max_completion_length < 1:
        raise ValueError(f"max_completion_length must be positive, got {max_completion_length}")
    if loss_type == "token_mean":
        return mask.bool().sum().float()
    responses = torch.tensor(float(mask.shape[0]), device=mask.device)
    return responses * max_completion_length if loss_type == "dr_grpo" else responses


def _reduce(
    per_token: Tensor, mask: Tensor, loss_type: LossType, max_completion_length: int, denominator: Tensor | float | None
) -> Tensor:
    """(B, A), (B, A) -> (): the sum over tokens, or over the responses' means, over the denominator."""
    if denominator is None:
        denominator = loss_denominator(mask, loss_type, max_completion_length)
    else:
        check_option("loss_type", loss_type, LossType)
    kept = mask.bool()
    per_response = torch.where(kept, per_token, 0.0).sum(dim=1)
    if loss_type == "grpo":
        per_response = per_response / kept.sum(dim=1).clamp(min=1)
    divisor = torch.as_tensor(denominator, device=mask.device)
    # No token at all in the whole update: a loss of 0, not 0 / 0.
    return per_response.sum() / divisor.masked_fill(divisor == 0, 1)
