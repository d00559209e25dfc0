"""One forward of a causal language model that yields token log-probs, entropies and the last hidden state.

The model's own forward runs (so DeepSpeed's hooks see every module); only its output head is exchanged for the time of
the call: instead of logits for every position it computes, in chunks of tokens, the statistics of those asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openrlhf_maestro.conductor.context import read_context
from openrlhf_maestro.objective.tokens import TokenStatistics, token_statistics
from openrlhf_maestro.rewards import ReferenceBranch
from openrlhf_maestro.upstream.device import MASKED_ATTENTION

# Options of a model's config that change the logits after the output head, where our head has no logits to change.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass
class TokenForward:
    """What one forward over a micro-batch yields. T tokens a row; position t of the (T - 1) predicts token t + 1."""

    log_probs: Tensor  # (B, T - 1) fp32, 0 outside the mask
    entropy: Tensor | None  # (B, T - 1) fp32 nats, 0 outside the mask, without gradient
    hidden: Tensor | None  # (B, H) fp32, the Conductor's context (conductor/context.py), without gradient
    reference_log_prob: Tensor | None  # (B,) fp32, mean over the reference's tokens, temperature 1; NaN without one


def check_supported(model: nn.Module) -> None:
    """Raise ValueError for a model that changes its logits after the output head."""
    config = getattr(model, "config", None)
    for name in LOGIT_CHANGES:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(
                f"{type(model).__name__} has {name} in its config: it changes the logits after the output head, which "
                "is not supported. Use a model without it (Qwen, Llama and Mistral families have none)."
            )


def check_shared_forward(model: nn.Module) -> None:
    """Raise ValueError for a model that cannot read a response and its reference branch in one forward."""
    config: Any = model.config
    kernel = config._attn_implementation
    if kernel not in MASKED_ATTENTION:
        raise ValueError(
            f"shared_forward needs an attention kernel that takes a 4D mask ({', '.join(MASKED_ATTENTION)}); "
            f"{kernel} does not. Set ds.attn_implementation: sdpa, or shared_forward: false."
        )
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"} or getattr(config, "sliding_window", None) is not None:
        raise ValueError(
            f"shared_forward: {type(model).__name__} has layers that do not attend to every earlier token, and a 4D "
            "mask would make them. Set shared_forward: false."
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
    context_layer: str = "last",
    context_pooling: str = "last_token",
    branch: ReferenceBranch | None = None,
) -> TokenForward:
    """Log-probs (and entropies) of the masked tokens under softmax(logits / temperature).

    Args:
        engine: a DeepSpeed engine around a Hugging Face causal language model, or the model itself.
        sequences: (B, T) long, right-padded.
        attention_mask: (B, T), 1 on tokens.
        action_mask: (B, T - 1), 1 where token t + 1 is wanted.
        temperature: the logits' divisor; the sampling temperature for a response, 1 for the reference answer.
        chunk_tokens: tokens whose logits exist at a time.
        with_entropy, with_hidden: whether `entropy` and `hidden` are wanted; else they are None.
        context_layer, context_pooling: where `hidden` is read, as in `read_context`; never in a branch.
        branch: reference answers to read in the same forward, for `reference_log_prob`; else that is None. The model
            must have passed `check_shared_forward`.
    """
    wanted = action_mask.bool()
    rows, columns = wanted.nonzero(as_tuple=True)
    selections = [_Selection(rows, columns, sequences[:, 1:][wanted], temperature, with_entropy)]
    token_ids, mask = sequences, attention_mask
    positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    model: Any = getattr(engine, "module", engine)
    if branch is not None:
        selections.append(_select_reference(branch, sequences.shape[1]))
        token_ids = torch.cat([sequences, branch.token_ids], dim=1)
        mask = branch_mask(sequences.shape[1], branch, model.dtype)
        own = torch.arange(branch.token_ids.shape[1], device=positions.device)
        positions = torch.cat([positions, branch.context[:, None] + own], dim=1)
    reading: Any = nullcontext()
    if with_hidden:
        reading = read_context(model, attention_mask, action_mask, layer=context_layer, pooling=context_pooling)
    with _statistics_head(model, selections, chunk_tokens) as statistics, reading as context:
        output = engine(token_ids, attention_mask=mask, position_ids=positions, use_cache=False)
    # The head's output came back through the model's own forward, so its graph is the model's.
    log_probs = output["logits"].split([len(selection.targets) for selection in selections])
    entropy = statistics[0].entropy
    return TokenForward(
        log_probs=_spread(log_probs[0], wanted),
        entropy=_spread(entropy, wanted) if entropy is not None else None,
        hidden=context.hidden if with_hidden else None,
        reference_log_prob=branch.mean(_spread(log_probs[1], branch.reference_mask.bool())) if branch else None,
    )


def branch_mask(width: int, branch: ReferenceBranch, dtype: torch.dtype) -> Tensor:
    """The additive attention mask of rows [prompt | reasoning | rest of the response | padding | branch | padding].

    The response attends to what is before it, as ever. The branch attends to prompt and reasoning, and causally to
    itself: neither to the rest of the response, nor is it seen by it. Padding needs no mask of its own: it is on the
    right of both parts, where nothing that counts looks.

    Args:
        width: T, columns of prompt + response.
        branch: L tokens a row.
        dtype: the model's, of the result.

    Returns:
        (B, 1, T + L, T + L): 0 where a query (third dimension) attends to a key (fourth), else the lowest number.
    """
    index = torch.arange(width + branch.token_ids.shape[1], device=branch.context.device)
    in_branch = index >= width
    earlier = index[:, None] >= index
    same_part = in_branch[:, None] == in_branch
    context = index < branch.context[:, None]
    seen = earlier & (same_part | context[:, None])
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


@dataclass
class _Selection:
    """N tokens whose statistics are wanted, and where in the (B, T, H) hidden states each is predicted."""

    rows: Tensor  # (N,)
    columns: Tensor  # (N,)
    targets: Tensor  # (N,) token ids
    temperature: float
    with_entropy: bool


def _select_reference(branch: ReferenceBranch, width: int) -> _Selection:
    """The reference's tokens, at temperature 1, in rows whose branch begins at column `width`."""
    rows, places = branch.reference_mask.nonzero(as_tuple=True)
    # The branch's first token is predicted by the last one of the reasoning.
    columns = torch.where(places > 0, width + places - 1, branch.context[rows] - 1)
    return _Selection(rows, columns, branch.token_ids[rows, places], temperature=1.0, with_entropy=False)


@contextmanager
def _statistics_head(model: Any, selections: list[_Selection], chunk_tokens: int) -> Iterator[list[TokenStatistics]]:
    """Within it the output head returns the selected tokens' log-probs, (N,) over all selections, not logits.

    A forward fills the list, one a selection.
    """
    head = model.get_output_embeddings()
    project = head.forward
    seen: list[TokenStatistics] = []

    def forward(hidden: Tensor) -> Tensor:
        seen[:] = [
            token_statistics(
                project,
                hidden[selection.rows, selection.columns],
                selection.targets,
                temperature=selection.temperature,
                chunk_tokens=chunk_tokens,
                with_entropy=selection.with_entropy,
            )
            for selection in selections
        ]
        return torch.cat([statistics.log_probs for statistics in seen])

    head.forward = forward
    try:
        yield seen
    finally:
        del head.forward


def _spread(values: Tensor, wanted: Tensor) -> Tensor:
    """(N,) values of the wanted positions -> (B, T - 1), 0 elsewhere."""
    return torch.zeros(wanted.shape, dtype=values.dtype, device=values.device).masked_scatter(wanted, values)
