"""One forward of a causal language model that yields token log-probs, entropies and the last hidden state.

The model's own forward runs (so DeepSpeed's hooks see every module); only its output head is exchanged for the time of
the call: instead of logits for every position it computes, in chunks of tokens, the statistics of those asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openrlhf_maestro.objective.tokens import TokenStatistics, token_statistics

# Options of a model's config that change the logits after the output head, where our head has no logits to change.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass
class TokenForward:
    """What one forward over a micro-batch yields. T tokens a row; position t of the (T - 1) predicts token t + 1."""

    log_probs: Tensor  # (B, T - 1) fp32, 0 outside the mask
    entropy: Tensor | None  # (B, T - 1) fp32 nats, 0 outside the mask, without gradient
    last_hidden: (
        Tensor | None
    )  # (B, H) fp32, final layer after the final norm, last token that is not padding, detached


def check_supported(model: nn.Module) -> None:
    """Raise ValueError for a model that changes its logits after the output head."""
    config = getattr(model, "config", None)
    for name in LOGIT_CHANGES:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(
                f"{type(model).__name__} has {name} in its config: it changes the logits after the output head, which "
                "is not supported. Use a model without it (Qwen, Llama and Mistral families have none)."
            )


def token_forward(
    engine: nn.Module,
    sequences: Tensor,
    attention_mask: Tensor,
    action_mask: Tensor,
    *,
    temperature: float,
    chunk_tokens: int,
    with_entropy: bool = False,
    with_hidden: bool = False,
) -> TokenForward:
    """Log-probs (and entropies) of the masked tokens under softmax(logits / temperature).

    Args:
        engine: a DeepSpeed engine around a Hugging Face causal language model, or the model itself.
        sequences: (B, T) long, right-padded.
        attention_mask: (B, T), 1 on tokens.
        action_mask: (B, T - 1), 1 where token t + 1 is wanted.
        temperature: the logits' divisor; the sampling temperature for a response, 1 for the reference answer.
        chunk_tokens: tokens whose logits exist at a time.
        with_entropy, with_hidden: whether `entropy` and `last_hidden` are wanted; else they are None.
    """
    wanted = action_mask.bool()
    model = getattr(engine, "module", engine)
    with _statistics_head(model, sequences, wanted, temperature, chunk_tokens, with_entropy) as seen:
        positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        output = engine(sequences, attention_mask=attention_mask, position_ids=positions, use_cache=False)
    last_hidden = None
    if with_hidden:
        last = attention_mask.long().sum(-1) - 1
        last_hidden = seen.hidden[torch.arange(len(last), device=last.device), last].float()
    return TokenForward(
        # The head's output came back through the model's own forward, so its graph is the model's.
        log_probs=_spread(output["logits"], wanted),
        entropy=_spread(seen.statistics.entropy, wanted) if seen.statistics.entropy is not None else None,
        last_hidden=last_hidden,
    )


@dataclass
class _Seen:
    hidden: Tensor  # (B, T, H) what reached the output head, detached
    statistics: TokenStatistics


@contextmanager
def _statistics_head(
    model: Any, sequences: Tensor, wanted: Tensor, temperature: float, chunk_tokens: int, with_entropy: bool
) -> Iterator[_Seen]:
    head = model.get_output_embeddings()
    project = head.forward
    seen = _Seen.__new__(_Seen)
    targets = sequences[:, 1:][wanted]

    def forward(hidden: Tensor) -> Tensor:
        seen.hidden = hidden.detach()
        seen.statistics = token_statistics(
            project,
            hidden[:, :-1][wanted],
            targets,
            temperature=temperature,
            chunk_tokens=chunk_tokens,
            with_entropy=with_entropy,
        )
        return seen.statistics.log_probs

    head.forward = forward
    try:
        yield seen
    finally:
        del head.forward


def _spread(values: Tensor, wanted: Tensor) -> Tensor:
    """(N,) values of the wanted positions -> (B, T - 1), 0 elsewhere."""
    return torch.zeros(wanted.shape, dtype=values.dtype, device=values.device).masked_scatter(wanted, values)
