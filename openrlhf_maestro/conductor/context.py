"""What the Conductor reads: h, one hidden state a response, taken from a forward that is made anyway.

Blocks are counted from 1, and L is how many there are. `first` is the output of block 1, `middle` that of block
floor(L / 2), after half of the model (of a model of one block, that block's); both are the residual stream as it is
there, without a norm. `last` is what reaches the output head: block L's output after the final norm. The embeddings
themselves would say nothing: a response that ended by itself ends with the same token as every other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = ("last", "middle", "first")
POOLINGS = ("last_token", "mean")


@dataclass
class Context:
    """Filled by the forward."""

    hidden: Tensor = field(init=False)  # (B, H) fp32, without gradient


@contextmanager
def read_context(
    model: Any, attention_mask: Tensor, action_mask: Tensor, *, layer: str = "last", pooling: str = "last_token"
) -> Iterator[Context]:
    """Within it a forward of `model` leaves the context of its rows in the record.

    One module is watched and its output pooled on the way, so that no layer's output outlives the forward.

    Args:
        model: a Hugging Face causal language model, or one without its head; not the engine around it.
        attention_mask: (B, T), 1 on the tokens of prompt + response, which stand on the left.
        action_mask: (B, T - 1), 1 where token t + 1 is the response's.
        layer: one of `LAYERS`.
        pooling: `last_token` of prompt + response, or the `mean` over the response's tokens, its stop token included.

    Raises:
        ValueError: the model's blocks cannot be found.
    """
    context = Context()

    def take(module: nn.Module, inputs: Any, output: Any) -> None:
        context.hidden = pool(_hidden_states(output), attention_mask, action_mask, pooling)

    handle = context_module(model, layer).register_forward_hook(take)
    try:
        yield context
    finally:
        handle.remove()


def pool(hidden: Tensor, attention_mask: Tensor, action_mask: Tensor, pooling: str) -> Tensor:
    """(B, T or more, H) hidden states -> (B, H) fp32, detached; columns after the T are not read. Masks as above.

    The mean of a row without a response is NaN.
    """
    hidden = hidden.detach()
    if pooling == "last_token":
        last = attention_mask.long().sum(-1) - 1
        return hidden[torch.arange(len(last), device=last.device), last].float()
    responses = hidden[:, 1 : 1 + action_mask.shape[1]]  # column t of the mask is token t + 1
    # Row by row: in fp32 whatever the model's type, and the same to the bit whatever the padding.
    return torch.stack([row[mask].float().mean(0) for row, mask in zip(responses, action_mask.bool(), strict=True)])


def context_module(model: Any, layer: str) -> nn.Module:
    """The module whose output is that of `layer`.

    Raises:
        ValueError: the model keeps its blocks where this does not find them.
    """
    decoder: Any = model.get_decoder()
    if layer == "last":
        return decoder
    blocks, depth = getattr(decoder, "layers", None), decoder.config.num_hidden_layers
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != depth:
        raise ValueError(
            f"conductor.context_layer: {layer} needs the outputs of single blocks, and the {depth} of "
            f"{type(model).__name__} are not its decoder's `layers`, where Qwen, Llama and Mistral families have them. "
            "Set conductor.context_layer: last."
        )
    return blocks[block_number(layer, depth) - 1]


def block_number(layer: str, depth: int) -> int:
    """Of `first` and `middle`, from 1."""
    return 1 if layer == "first" else max(1, depth // 2)


def check_choice(layer: str, pooling: str) -> None:
    """Raise ValueError for a layer or a pooling that there is not."""
    for option, value, known in (("context_layer", layer, LAYERS), ("context_pooling", pooling, POOLINGS)):
        if value not in known:
            raise ValueError(f"Conductor: {option} must be one of {', '.join(known)}, got {value}")


def _hidden_states(output: Any) -> Tensor:
    """From what a block or a whole decoder returns."""
    hidden = output if isinstance(output, Tensor) else output[0]
    assert isinstance(hidden, Tensor)
    return hidden
