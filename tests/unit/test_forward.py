"""`token_forward` against a plain forward with log_softmax, on a tiny random Qwen3."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from openrlhf_maestro.workers.forward import check_supported, token_forward

VOCABULARY, HIDDEN = 61, 16


def tiny_model(tied: bool = True) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Three rows of 9, 5 and 7 tokens, responses from the 4th, 3rd and last token on."""
    generator = torch.Generator().manual_seed(1)
    sequences = torch.randint(1, VOCABULARY, (3, 9), generator=generator)
    attention_mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 7 + [0] * 2])
    action_mask = torch.zeros(3, 8, dtype=torch.long)
    action_mask[0, 2:8] = action_mask[1, 1:4] = action_mask[2, 5:6] = 1
    return {"sequences": sequences * attention_mask, "attention_mask": attention_mask, "action_mask": action_mask}


def by_definition(model: Any, batch: dict[str, Tensor], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs and entropies (3, 8), and the last token's hidden state (3, H), each row by itself, without padding."""
    log_probs, entropy = torch.zeros(3, 8), torch.zeros(3, 8)
    hidden = []
    for row in range(3):
        length = int(batch["attention_mask"][row].sum())
        output = model(batch["sequences"][row : row + 1, :length], output_hidden_states=True)
        log_distribution = (output.logits[0] / temperature).log_softmax(-1)
        hidden.append(output.hidden_states[-1][0, -1])
        for position in batch["action_mask"][row].nonzero().flatten().tolist():
            log_probs[row, position] = log_distribution[position, batch["sequences"][row, position + 1]]
            entropy[row, position] = torch.distributions.Categorical(logits=log_distribution[position]).entropy()
    return log_probs, entropy, torch.stack(hidden)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [0.8, 1.0])
@pytest.mark.parametrize("chunk_tokens", [3, 1024])
def test_log_probs_entropy_and_hidden_state(
    batch: dict[str, Tensor], tied: bool, temperature: float, chunk_tokens: int
) -> None:
    model = tiny_model(tied)
    with torch.no_grad():
        log_probs, entropy, hidden = by_definition(model, batch, temperature)
        result = token_forward(
            model, **batch, temperature=temperature, chunk_tokens=chunk_tokens, with_entropy=True, with_hidden=True
        )
    torch.testing.assert_close(result.log_probs, log_probs, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.entropy, entropy, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.hidden, hidden, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients(batch: dict[str, Tensor], tied: bool) -> None:
    """Of a weighted sum of the log-probs, in every parameter, the output head's too."""
    model, plain = tiny_model(tied), tiny_model(tied)
    weights = torch.linspace(-1, 2, 24).view(3, 8)
    result = token_forward(model, **batch, temperature=0.7, chunk_tokens=4)
    (result.log_probs * weights).sum().backward()
    (by_definition(plain, batch, 0.7)[0] * weights).sum().backward()
    for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, expected.grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text
        )


def test_what_carries_no_gradient(batch: dict[str, Tensor]) -> None:
    result = token_forward(tiny_model(), **batch, temperature=1.0, chunk_tokens=4, with_entropy=True, with_hidden=True)
    assert result.log_probs.requires_grad
    assert not result.hidden.requires_grad
    assert result.entropy is not None and not result.entropy.requires_grad


def test_zero_outside_the_mask_and_no_entropy_unless_asked(batch: dict[str, Tensor]) -> None:
    with torch.no_grad():
        result = token_forward(tiny_model(), **batch, temperature=1.0, chunk_tokens=4)
    assert result.entropy is None
    assert (result.log_probs[batch["action_mask"] == 0] == 0).all()


def test_values_are_fp32_for_a_bf16_model(batch: dict[str, Tensor]) -> None:
    with torch.no_grad():
        result = token_forward(
            tiny_model().bfloat16(), **batch, temperature=1.0, chunk_tokens=4, with_entropy=True, with_hidden=True
        )
    assert result.log_probs.dtype == result.hidden.dtype == torch.float32
    assert result.entropy is not None and result.entropy.dtype == torch.float32


def test_the_model_is_left_as_it_was(batch: dict[str, Tensor]) -> None:
    model = tiny_model()
    with torch.no_grad():
        before = model(batch["sequences"]).logits
        token_forward(model, **batch, temperature=1.0, chunk_tokens=4)
        after = model(batch["sequences"]).logits
    assert torch.equal(before, after) and after.shape[-1] == VOCABULARY


def test_the_head_comes_back_after_a_failure(batch: dict[str, Tensor]) -> None:
    model = tiny_model()
    wrong = batch | {"attention_mask": batch["attention_mask"][:, :-1]}
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        token_forward(model, **wrong, temperature=1.0, chunk_tokens=4)
    with torch.no_grad():
        assert model(batch["sequences"]).logits.shape == (3, 9, VOCABULARY)


def test_an_engine_is_called_through_its_own_forward(batch: dict[str, Tensor]) -> None:
    """DeepSpeed's engine wraps the model as `module`; its hooks live in its forward."""

    class Engine(torch.nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.module(*args, **kwargs)

    engine = Engine(tiny_model())
    with torch.no_grad():
        result = token_forward(engine, **batch, temperature=1.0, chunk_tokens=4)
        expected = by_definition(engine.module, batch, 1.0)[0]
    assert engine.calls == 1
    torch.testing.assert_close(result.log_probs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("option", "value"), [("final_logit_softcapping", 30.0), ("logit_scale", 0.5), ("logits_scaling", 8.0)]
)
def test_refuses_models_that_change_their_logits(option: str, value: float) -> None:
    model = tiny_model()
    model.config = copy.deepcopy(model.config)
    setattr(model.config, option, value)
    with pytest.raises(ValueError, match=option):
        check_supported(model)


def test_accepts_neutral_values() -> None:
    model = tiny_model()
    check_supported(model)
    model.config.final_logit_softcapping = None
    model.config.logit_scale = 1.0
    check_supported(model)
