"""The reference answer's log-probs, by a forward of their own and in the response's, against plain forwards.

Expected values: transformers' own forward of one row at a time, without padding or mask, and log_softmax. Tolerance
1e-4 in fp32: the two orders of summation differ by about 1e-6.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from openrlhf_maestro.rewards import ReferenceBranch, TeacherForced
from openrlhf_maestro.workers.forward import TokenForward, branch_mask, check_shared_forward, token_forward

VOCABULARY, TEMPERATURE = 61, 0.8
# Of four responses: prompt, reasoning, rest of the response, answer prefix, reference; the third is at fault.
PROMPT, REASONING, REST = [3, 5, 2, 4], [4, 2, 3, 6], [3, 6, 5, 1]
PREFIX, REFERENCE, FAULT = [2, 1, 3, 2], [3, 1, 2, 5], 2


def tiny_model(family: str = "qwen3", tied: bool = True, kernel: str = "sdpa") -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,  # far from uniform predictions
        "attn_implementation": kernel,
    }
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**settings)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**settings)).eval()


class Rows:
    """Random tokens of the lengths above, and the tensors that the forwards read."""

    def __init__(self, with_prefix: bool = True, faults: tuple[int, ...] = (FAULT,), padding: int = 0) -> None:
        generator = torch.Generator().manual_seed(1)
        lengths = list(zip(PROMPT, REASONING, REST, PREFIX, REFERENCE, strict=True))
        parts = [
            [torch.randint(1, VOCABULARY, (size,), generator=generator).tolist() for size in sizes] for sizes in lengths
        ]
        self.faults = faults
        self.responses = [prompt + reasoning + rest for prompt, reasoning, rest, _, _ in parts]
        self.forced = [
            prompt + reasoning + (prefix if with_prefix else []) + reference
            for prompt, reasoning, _, prefix, reference in parts
        ]
        width = max(map(len, self.responses)) + padding
        self.sequences = torch.tensor([row + [0] * (width - len(row)) for row in self.responses])
        self.attention_mask = (self.sequences > 0).long()
        self.action_mask = torch.zeros(4, width - 1, dtype=torch.long)
        for row, prompt in enumerate(PROMPT):
            self.action_mask[row, prompt - 1 : len(self.responses[row]) - 1] = 1
        self.branch = ReferenceBranch.of(
            [
                None
                if row in faults
                else TeacherForced(
                    len(prompt) + len(reasoning),
                    (prefix if with_prefix else []) + reference,
                    len(prefix) if with_prefix else 0,
                )
                for row, (prompt, reasoning, _, prefix, reference) in enumerate(parts)
            ]
        )

    def forward(self, model: Any, shared: bool) -> TokenForward:
        """Both forwards, or the one."""
        with torch.no_grad():
            found = token_forward(
                model,
                self.sequences,
                self.attention_mask,
                self.action_mask,
                temperature=TEMPERATURE,
                chunk_tokens=5,
                with_entropy=True,
                with_hidden=True,
                branch=self.branch if shared else None,
            )
            if not shared:
                own = token_forward(model, *self.branch.rows(self.sequences), temperature=1.0, chunk_tokens=5)
                found.reference_log_prob = self.branch.mean(own.log_probs)
        return found


@torch.no_grad()
def by_definition(model: Any, rows: Rows) -> dict[str, Any]:
    """Mean log-prob of the reference (4,), NaN at fault; log-probs and entropies (row by row); last hidden (4, H)."""
    reference, log_probs, entropy, hidden = [], [], [], []
    for row, (response, forced) in enumerate(zip(rows.responses, rows.forced, strict=True)):
        distribution = model(torch.tensor([forced])).logits[0].log_softmax(-1)
        places = range(len(forced) - REFERENCE[row], len(forced))
        mean = sum(float(distribution[place - 1, forced[place]]) for place in places) / REFERENCE[row]
        reference.append(torch.nan if row in rows.faults else mean)
        output = model(torch.tensor([response]), output_hidden_states=True)
        distribution = (output.logits[0] / TEMPERATURE).log_softmax(-1)
        own = range(PROMPT[row], len(response))
        log_probs += [float(distribution[place - 1, response[place]]) for place in own]
        entropy += [float(torch.distributions.Categorical(logits=distribution[place - 1]).entropy()) for place in own]
        hidden.append(output.hidden_states[-1][0, -1])
    return {"reference": reference, "log_probs": log_probs, "entropy": entropy, "hidden": torch.stack(hidden)}


def assert_agree(found: TokenForward, expected: dict[str, Any], rows: Rows) -> None:
    def close(one: Tensor, other: Any) -> None:
        torch.testing.assert_close(one, torch.as_tensor(other), rtol=0, atol=1e-4, equal_nan=True)

    mask = rows.action_mask.bool()
    assert found.entropy is not None and found.hidden is not None and found.reference_log_prob is not None
    close(found.reference_log_prob, expected["reference"])
    close(found.log_probs[mask], expected["log_probs"])
    close(found.entropy[mask], expected["entropy"])
    close(found.hidden, expected["hidden"])
    assert (found.log_probs[~mask] == 0).all() and (found.entropy[~mask] == 0).all()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("with_prefix", [True, False])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_agrees_with_plain_forwards(family: str, tied: bool, kernel: str, with_prefix: bool, shared: bool) -> None:
    model, rows = tiny_model(family, tied, kernel), Rows(with_prefix)
    assert model.config._attn_implementation == kernel
    assert_agree(rows.forward(model, shared), by_definition(model, rows), rows)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("faults", [(), (0, 1, 2, 3)])
def test_no_response_at_fault_and_all_of_them(faults: tuple[int, ...], shared: bool) -> None:
    model, rows = tiny_model(), Rows(faults=faults)
    assert_agree(rows.forward(model, shared), by_definition(model, rows), rows)


@pytest.mark.parametrize("shared", [False, True])
def test_padding_changes_nothing(shared: bool) -> None:
    model, rows = tiny_model(), Rows(padding=7)
    assert_agree(rows.forward(model, shared), by_definition(model, rows), rows)


def test_the_rest_of_the_response_is_not_read() -> None:
    """Not by a bit: other tokens after the reasoning leave the reference's log-prob where it was."""
    model, rows, other = tiny_model(), Rows(), Rows()
    for row, (prompt, reasoning) in enumerate(zip(PROMPT, REASONING, strict=True)):
        rest = other.sequences[row, prompt + reasoning :]
        rest[rest > 0] = VOCABULARY - rest[rest > 0]
    assert not torch.equal(rows.sequences, other.sequences)
    first, second = rows.forward(model, shared=True), other.forward(model, shared=True)
    assert torch.equal(first.reference_log_prob.nan_to_num(), second.reference_log_prob.nan_to_num())  # type: ignore[union-attr]


def test_mask_by_hand() -> None:
    """Three tokens and a padding, of which the branch of two sees two; then a fault, whose branch is padding."""
    branch = ReferenceBranch.of([TeacherForced(2, [7, 8], 1), None])
    mask = branch_mask(4, branch, torch.float32)
    first = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    first += [[1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 1]]
    assert mask.shape == (2, 1, 6, 6) and mask.dtype == torch.float32
    assert (mask[0, 0] == 0).long().tolist() == first
    assert (mask[1, 0, :4] == 0).long().tolist() == first[:4]
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}


def test_vocabulary_projection_only_where_it_is_wanted() -> None:
    model, rows = tiny_model(), Rows()
    projected: list[int] = []
    project = model.lm_head.forward

    def counting(hidden: Tensor) -> Tensor:
        projected.append(hidden.numel() // hidden.shape[-1])
        return project(hidden)

    model.lm_head.forward = counting
    rows.forward(model, shared=True)
    wanted = int(rows.action_mask.sum()) + sum(size for row, size in enumerate(REFERENCE) if row != FAULT)
    assert sum(projected) == wanted


def test_a_bf16_model() -> None:
    """The mask has the model's type. bf16 has 8 bits: the paths agree to about 0.1 nat here, far from chance."""
    model, rows = tiny_model().bfloat16(), Rows()
    one, two = (rows.forward(model, shared).reference_log_prob for shared in (True, False))
    assert one is not None and two is not None and one.dtype == torch.float32
    torch.testing.assert_close(one, two, rtol=0, atol=0.1, equal_nan=True)


# ── where it is refused ──


def test_a_kernel_without_4d_masks_is_refused() -> None:
    model = tiny_model()
    check_shared_forward(model)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"flash_attention_2.*ds\.attn_implementation: sdpa"):
        check_shared_forward(model)


@pytest.mark.parametrize("window", [None, 16])
def test_a_sliding_window_is_refused(window: int | None) -> None:
    config = MistralConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        sliding_window=window,
    )
    model = MistralForCausalLM(config)
    if window is None:
        check_shared_forward(model)
    else:
        with pytest.raises(ValueError, match="MistralForCausalLM has layers"):
            check_shared_forward(model)


def test_a_sliding_layer_is_refused() -> None:
    model = tiny_model()
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="Qwen3ForCausalLM has layers"):
        check_shared_forward(model)
