"""Where the Conductor's context is read, against transformers' `output_hidden_states=True` row by row, without padding.

`hidden_states[i]` is there the output of block i (0: the embeddings), the last one after the final norm. Tolerance
1e-5 in fp32: padding changes the order of summation, by about 1e-7 here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from openrlhf_maestro.conductor.context import (
    LAYERS,
    POOLINGS,
    block_number,
    check_choice,
    context_module,
    pool,
    read_context,
)
from openrlhf_maestro.rewards import ReferenceBranch, TeacherForced
from openrlhf_maestro.workers.forward import token_forward

VOCABULARY, HIDDEN, DEPTH = 61, 16, 5
# The block of five that each layer names, as an index into hidden_states.
INDEX = {"first": 1, "middle": 2, "last": 5}
PROMPT, LENGTH = [3, 2, 6], [9, 5, 7]  # the third response is one token


def tiny_model(family: str = "qwen3", depth: int = DEPTH) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 24,
        "num_hidden_layers": depth,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": family == "qwen3",
        "initializer_range": 0.3,
    }
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**settings)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**settings)).eval()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    sequences = torch.randint(1, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    places = torch.arange(9)
    attention_mask = (places < torch.tensor(LENGTH)[:, None]).long()
    responses = (places >= torch.tensor(PROMPT)[:, None]) & attention_mask.bool()
    return {
        "sequences": sequences * attention_mask,
        "attention_mask": attention_mask,
        "action_mask": responses[:, 1:].long(),
    }


@torch.no_grad()
def by_definition(model: Any, batch: dict[str, Tensor], layer: str, pooling: str) -> Tensor:
    """(3, H)."""
    rows = []
    for row, (prompt, length) in enumerate(zip(PROMPT, LENGTH, strict=True)):
        states = model(batch["sequences"][row : row + 1, :length], output_hidden_states=True).hidden_states
        assert len(states) == DEPTH + 1
        own = states[INDEX[layer]][0]
        rows.append(own[-1] if pooling == "last_token" else own[prompt:].mean(0))
    return torch.stack(rows)


def forward(model: Any, batch: dict[str, Tensor], **settings: Any) -> Any:
    with torch.no_grad():
        return token_forward(model, **batch, temperature=0.8, chunk_tokens=4, with_entropy=True, **settings)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_agrees_with_all_hidden_states(batch: dict[str, Tensor], family: str, layer: str, pooling: str) -> None:
    model = tiny_model(family)
    found = forward(model, batch, with_hidden=True, context_layer=layer, context_pooling=pooling).hidden
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, by_definition(model, batch, layer, pooling), rtol=0, atol=1e-5)


def test_every_choice_reads_something_else(batch: dict[str, Tensor]) -> None:
    """So that the test above can tell them apart. The last row's response is one token: there the poolings agree."""
    model = tiny_model()
    found = [by_definition(model, batch, layer, pooling)[:2] for layer in LAYERS for pooling in POOLINGS]
    for one in range(len(found)):
        for other in range(one):
            assert (found[one] - found[other]).abs().amax(1).min() > 0.01


def test_the_default_is_what_reaches_the_output_head(batch: dict[str, Tensor]) -> None:
    """To the bit, with the gradient on as well."""
    model = tiny_model()
    seen = []
    with torch.no_grad():
        model.lm_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        found = forward(model, batch, with_hidden=True).hidden
    assert torch.equal(found, seen[0][range(3), [length - 1 for length in LENGTH]])
    result = token_forward(model, **batch, temperature=0.8, chunk_tokens=4, with_hidden=True)
    assert torch.equal(result.hidden, found) and not result.hidden.requires_grad  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_else_the_forward_yields_stays_to_the_bit(batch: dict[str, Tensor], layer: str, pooling: str) -> None:
    model = tiny_model()
    plain = forward(model, batch)
    found = forward(model, batch, with_hidden=True, context_layer=layer, context_pooling=pooling)
    assert plain.hidden is None
    assert torch.equal(found.log_probs, plain.log_probs) and torch.equal(found.entropy, plain.entropy)


def test_no_forward_of_its_own_and_no_hook_left(batch: dict[str, Tensor]) -> None:
    """Every block runs once, and nothing watches the model afterwards, after a failure neither."""
    model = tiny_model()
    calls: list[nn.Module] = []
    for block in model.model.layers:
        block.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    forward(model, batch, with_hidden=True, context_layer="middle", context_pooling="mean")
    assert len(calls) == DEPTH
    wrong = batch | {"attention_mask": batch["attention_mask"][:, :-1]}
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        forward(model, wrong, with_hidden=True, context_layer="middle")
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_reference_branch_is_not_read(batch: dict[str, Tensor], layer: str, pooling: str) -> None:
    """Another answer appended to the rows changes nothing, to the bit, and it is the context without any to 1e-5."""
    model = tiny_model()
    settings = {"with_hidden": True, "context_layer": layer, "context_pooling": pooling}
    found = []
    for first in (1, 30):
        forced = [TeacherForced(length - 1, [first, first + 1, first + 2], 2) for length in LENGTH]
        found.append(forward(model, batch, **settings, branch=ReferenceBranch.of([*forced[:2], None])).hidden)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], by_definition(model, batch, layer, pooling), rtol=0, atol=1e-5)


def test_bf16_states_are_averaged_in_fp32(batch: dict[str, Tensor]) -> None:
    model = tiny_model().bfloat16()
    states = model(**{"input_ids": batch["sequences"], "attention_mask": batch["attention_mask"]}).logits
    assert states.dtype == torch.bfloat16
    hidden = torch.randn(1, 9, HIDDEN, generator=torch.Generator().manual_seed(2)).bfloat16()
    found = pool(hidden, batch["attention_mask"][:1], batch["action_mask"][:1], "mean")
    assert torch.equal(found[0], hidden[0, 3:9].float().mean(0)) and found.dtype == torch.float32


def test_a_mean_by_hand() -> None:
    """Prompt of two tokens, response of two, padding of one, and a column of a branch: (3 + 5) / 2."""
    hidden = torch.tensor([[[1.0], [2.0], [3.0], [5.0], [100.0], [1000.0]]])
    attention_mask, action_mask = torch.tensor([[1, 1, 1, 1, 0]]), torch.tensor([[0, 1, 1, 0]])
    assert pool(hidden, attention_mask, action_mask, "mean").tolist() == [[4.0]]
    assert pool(hidden, attention_mask, action_mask, "last_token").tolist() == [[5.0]]


@pytest.mark.parametrize(("depth", "middle"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (28, 14), (36, 18)])
def test_which_block_is_which(depth: int, middle: int) -> None:
    assert block_number("first", depth) == 1
    assert block_number("middle", depth) == middle


def test_the_same_of_a_model_without_its_head(batch: dict[str, Tensor]) -> None:
    model = tiny_model()
    masks = batch["attention_mask"], batch["action_mask"]
    for layer in LAYERS:
        with torch.no_grad(), read_context(model.model, *masks, layer=layer) as context:
            model.model(batch["sequences"], attention_mask=batch["attention_mask"])
        torch.testing.assert_close(context.hidden, by_definition(model, batch, layer, "last_token"), rtol=0, atol=1e-5)


def test_a_model_whose_blocks_are_elsewhere_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=8))
    assert context_module(model, "last") is model.transformer
    with pytest.raises(ValueError, match=r"middle needs .* the 2 of GPT2LMHeadModel .* Set conductor.context_layer"):
        context_module(model, "middle")


@pytest.mark.parametrize(
    ("layer", "pooling", "message"),
    [
        ("final", "mean", "context_layer must be one of last, middle, first, got final"),
        ("last", "max", "context_pooling must be one of last_token, mean, got max"),
    ],
)
def test_unknown_choices_are_refused(layer: str, pooling: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_choice(layer, pooling)
