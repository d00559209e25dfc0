"""Log-probabilities and entropies of tokens, without ever holding the logits of a whole batch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class TokenStatistics(NamedTuple):
    """Per token, at least float32."""

    log_probs: Tensor  # (N,) log-probability of the target, differentiable
    entropy: Tensor | None  # (N,) entropy of the whole next-token distribution, nats, no gradient


def token_statistics(
    project: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    with_entropy: bool = True,
) -> TokenStatistics:
    """Log-probabilities of ``targets`` and the entropy of each prediction, chunk by chunk.

    The logits of a chunk are brought to float32 before anything else is done with them, and are gone before the next
    chunk's are made: with gradients on, a chunk is computed again in the backward pass instead of being kept. At any
    time there are a few (chunk_tokens, V) tensors, never (N, V).

    ``project`` is called once a chunk, and once more in the backward pass. Under ZeRO-3 ranks with different N call it
    differently often, so its parameters must be gathered around the whole call, not by hooks of ``project`` itself.

    Args:
        project: (n, H) -> (n, V) logits, the policy's output layer. It must not draw random numbers.
        hidden: (N, H) final hidden states at the positions that predict ``targets``.
        targets: (N,) int64 token ids.
        temperature: divides the logits, for log-probabilities and entropy alike; the sampling temperature where the
            distribution that was sampled from is meant.
        chunk_tokens: most tokens a chunk.
        with_entropy: whether to compute the entropy.

    Returns:
        log_probs (N,), differentiable in ``hidden`` and in the parameters of ``project``, and entropy (N,) or None.

    Raises:
        ValueError: if the shapes do not fit, or an argument is out of range.
    """
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1]:
        shapes = f"{tuple(hidden.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"token_statistics: expected hidden (N, H) and targets (N,), got {shapes}")
    if temperature <= 0 or chunk_tokens < 1:
        raise ValueError(
            f"token_statistics: temperature and chunk_tokens must be positive, got {temperature} and {chunk_tokens}"
        )

    def chunk_statistics(chunk: Tensor, chunk_targets: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = project(chunk)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        log_normaliser = logits.logsumexp(dim=-1)
        log_probs = logits.gather(-1, chunk_targets.unsqueeze(-1)).squeeze(-1) - log_normaliser
        # Last, so that the backward pass, which stops recomputing once it has what it needs, never repeats it.
        return log_probs, _entropy(logits.detach(), log_normaliser.detach()) if with_entropy else None

    log_probs, entropy = [], []
    for piece in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True):
        if torch.is_grad_enabled():
            outputs = checkpoint(chunk_statistics, *piece, use_reentrant=False, preserve_rng_state=False)
        else:
            outputs = chunk_statistics(*piece)
        log_probs.append(outputs[0])
        entropy.append(outputs[1])
    return TokenStatistics(torch.cat(log_probs), torch.cat(entropy) if with_entropy else None)


def _entropy(logits: Tensor, log_normaliser: Tensor) -> Tensor:
    """(n, V), (n,) -> (n,): H = log Z - sum_v p_v logit_v."""
    probs = (logits - log_normaliser.unsqueeze(-1)).exp_()
    # A logit of -inf (a token that was ruled out) has p = 0 and adds nothing; 0 * -inf would be NaN.
    return log_normaliser - probs.mul_(logits.masked_fill(probs == 0, 0.0)).sum(dim=-1)
