"""The policy's update and features on the real workers, against METHOD section 3 written out on full tensors.

Two policies get the same eight hand-made responses: one as two ZeRO-3 ranks that train on 2 responses at a time, one
as a single rank that trains on all 8 at once. Lengths differ, one response is truncated, the old log-probs are off so
that some ratios are clipped, and the gradient is long enough to be clipped.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from openrlhf_maestro.rewards.teacher_forcing import ReferenceBranch, TeacherForced

pytestmark = pytest.mark.integration

TEMPERATURE, LIMIT, BETA, ALPHA, QUANTILE, EPS = 0.8, 10, 0.1, 0.6, 0.2, 0.2
LR, ADAM_EPS, MAX_NORM, UPDATES = 1e-2, 1e-2, 1.0, 2
VOCABULARY, HIDDEN = 101, 24  # neither divides evenly over two ranks with everything else: shards are padded
PROMPT_TOKENS = [3, 5, 2, 4, 6, 2, 3, 4]
RESPONSE_TOKENS = [7, 4, 10, 2, 5, 9, 1, 6]
TRUNCATED = [False, False, True, False, False, False, False, False]
REFERENCE_TOKENS = [3, 1, 2, 5, 2, 4, 1, 3]


@dataclass
class Case:
    model: Any  # Qwen3ForCausalLM
    sequences: Tensor  # (8, T) right-padded
    attention_mask: Tensor  # (8, T)
    action_mask: Tensor  # (8, T - 1)
    advantages: Tensor  # (8,)
    old_log_probs: Tensor  # (8, T - 1)
    ref_log_probs: Tensor  # (8, T - 1)
    entropy: Tensor  # (8, T - 1)
    answers: list[TeacherForced]  # 8, the reference answers
    result: dict[str, Any]


def tiny_model() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,  # far from uniform predictions
    )
    return Qwen3ForCausalLM(config).eval()


def save_with_tokenizer(model: Any, folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<eos>": 0, "word": 1}, unk_token="word"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>").save_pretrained(folder)


def right_padded(first: list[int], second: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens of these lengths: ids (B, T), attention mask, mask (B, T - 1) that predicts the second part."""
    width = max(map(sum, zip(first, second, strict=True)))
    ids = torch.zeros(len(first), width, dtype=torch.long)
    attention, action = torch.zeros_like(ids), torch.zeros(len(first), width - 1, dtype=torch.long)
    for row, (before, after) in enumerate(zip(first, second, strict=True)):
        ids[row, : before + after] = torch.randint(1, VOCABULARY, (before + after,), generator=generator)
        attention[row, : before + after] = 1
        action[row, before - 1 : before + after - 1] = 1
    return ids, attention, action


def token_log_probs(model: Any, ids: Tensor, attention_mask: Tensor, temperature: float) -> Tensor:
    logits = model(ids, attention_mask=attention_mask).logits[:, :-1] / temperature
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def halves(tensor: Tensor) -> list[Tensor]:
    return [tensor[:4].clone(), tensor[4:].clone()]


def configuration(folder: Path, ranks: int, reference_ranks: int, micro_batch_size: int) -> dict[str, Any]:
    return {
        "run": {"dir": str(folder / "run"), "device": "cpu"},
        "actor": {
            "model_name_or_path": str(folder / "model"),
            "num_gpus_per_node": ranks,
            "adam": {"lr": LR, "eps": ADAM_EPS},
            "lr_scheduler": "constant",
            "max_norm": MAX_NORM,
        },
        "ref": {"num_gpus_per_node": reference_ranks},
        "rewards": {"components": [{"kind": "format"}, {"kind": "length"}]},
        "data": {"prompt_dataset": "none.jsonl", "max_len": 32},
        "rollout": {
            "batch_size": 2,
            "n_samples_per_prompt": 4,
            "micro_batch_size": 4,
            "max_new_tokens": LIMIT,
            "temperature": TEMPERATURE,
        },
        "train": {"batch_size": 8, "micro_batch_size": micro_batch_size},
        "algo": {"kl": {"init_coef": BETA}},
        "ds": {"logits_chunk_tokens": 5},  # several chunks a micro-batch
    }


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("update")
    model = tiny_model()
    save_with_tokenizer(model, folder / "model")
    generator = torch.Generator().manual_seed(1)
    ids, attention, action = right_padded(PROMPT_TOKENS, RESPONSE_TOKENS, generator)
    with torch.no_grad():
        current = token_log_probs(model, ids, attention, TEMPERATURE)
    mask = action.float()
    # One offset a response: the sequence-level ratio becomes exp(-offset), outside 1 +- 0.2 for some.
    offset = torch.tensor([0.0, 0.5, 0.1, -0.5, -0.1, 0.3, -0.3, 0.05])[:, None]
    old = (current + offset) * mask
    ref = (current + 0.5 * torch.randn(current.shape, generator=generator)) * mask
    entropy = torch.rand(current.shape, generator=generator) * 3 * mask
    # Each after its response's first token, the first of its own tokens not counted.
    answers = [
        TeacherForced(prompt + 1, torch.randint(1, VOCABULARY, (tokens + 1,), generator=generator).tolist(), 1)
        for prompt, tokens in zip(PROMPT_TOKENS, REFERENCE_TOKENS, strict=True)
    ]
    advantages = torch.tensor([1.0, -1.0, 2.0, -2.0, 1.5, 0.0, 0.5, -0.5]) * 40
    batches = [
        {
            "sequences": halves(ids)[half],
            "attention_mask": halves(attention)[half],
            "action_mask": halves(action)[half],
            "action_log_probs": halves(old)[half],
            "rollout_log_probs": halves(old)[half],
            "base_action_log_probs": halves(ref)[half],
            "info": {
                "advantage": halves(advantages)[half],
                "loss_dropped": halves(torch.tensor(TRUNCATED))[half],
                "token_entropy": halves(entropy)[half],
            },
        }
        for half in (0, 1)
    ]
    features = {
        "sequences": halves(ids),
        "attention_mask": halves(attention),
        "action_mask": halves(action),
        "with_hidden": [True, True],
        "branch": [ReferenceBranch.of(answers[:4]), ReferenceBranch.of(answers[4:])],
    }
    inputs = {
        "configs": {
            "two ranks": configuration(folder, ranks=2, reference_ranks=1, micro_batch_size=2),
            "one rank": configuration(folder, ranks=1, reference_ranks=2, micro_batch_size=8),
        },
        "micro_batches": batches,
        "features": features,
        "updates": UPDATES,
        "beta": BETA,
        "alpha": ALPHA,
    }
    torch.save(inputs, folder / "case.pt")
    run_drive_workers(folder)
    result = torch.load(folder / "result.pt", weights_only=False)
    yield Case(model, ids, attention, action, advantages, old, ref, entropy, answers, result)


def run_drive_workers(folder: Path) -> None:
    script = Path(__file__).with_name("drive_workers.py")
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env=os.environ | {"PYTHONPATH": str(script.parents[2])},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(timeout=500)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()
    logs = "".join(path.read_text() for path in (folder / "run" / "logs").glob("*.log"))
    assert process.returncode == 0, (folder / "output").read_text()[-4000:] + logs[-4000:]


# ── the update ──


def expected_loss(model: Any, case: Case) -> tuple[Tensor, Tensor]:
    """METHOD section 3: (loss, mean k3 over the tokens that are not masked)."""
    log_probs = token_log_probs(model, case.sequences, case.attention_mask, TEMPERATURE)
    mask = case.action_mask.float() * (~torch.tensor(TRUNCATED)).float()[:, None]
    lengths = mask.sum(1).clamp(min=1)
    ratio = (((log_probs - case.old_log_probs) * mask).sum(1) / lengths).exp()
    surrogate = torch.minimum(ratio * case.advantages, ratio.clamp(1 - EPS, 1 + EPS) * case.advantages)
    threshold = torch.quantile(case.entropy[mask.bool()], 1 - QUANTILE)
    high = mask * (case.entropy >= threshold).float()
    difference = case.ref_log_probs - log_probs
    k3 = (difference.exp() - difference - 1) * mask
    loss = (-(surrogate[:, None] * high).sum() + BETA * k3.sum()) / (len(mask) * LIMIT)
    return loss, k3.sum() / mask.sum()


@pytest.fixture(scope="module")
def expected_updates(case: Case) -> list[dict[str, Any]]:
    model = copy.deepcopy(case.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.999), eps=ADAM_EPS, weight_decay=0.0)
    updates = []
    for _ in range(UPDATES):
        optimizer.zero_grad()
        loss, kl = expected_loss(model, case)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        updates.append({"loss": loss.item(), "kl": kl.item(), "grad_norm": norm.item(), "weights": weights})
    return updates


def test_the_case_is_one_that_tests(case: Case, expected_updates: list[dict[str, Any]]) -> None:
    """Gradient clipping, ratio clipping and the second, off-policy update all matter here."""
    assert all(update["grad_norm"] > 2 * MAX_NORM for update in expected_updates)
    start = dict(case.model.named_parameters())
    moved = max(
        float((weight - start[name]).abs().max().detach()) for name, weight in expected_updates[0]["weights"].items()
    )
    assert moved > 1e-3


@pytest.mark.parametrize("policy", ["two ranks", "one rank"])
@pytest.mark.parametrize("number", range(UPDATES))
def test_update_is_that_of_the_method(
    case: Case, expected_updates: list[dict[str, Any]], policy: str, number: int
) -> None:
    update, expected = case.result[policy]["updates"][number], expected_updates[number]
    assert update["status"]["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert update["status"]["kl"] == pytest.approx(expected["kl"], rel=1e-4)
    assert update["status"]["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert update["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(
            update["weights"][name], weight, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_neither_ranks_nor_micro_batch_size_change_the_update(case: Case) -> None:
    for one, other in zip(*(case.result[policy]["updates"] for policy in ("two ranks", "one rank")), strict=True):
        for name, weight in one["weights"].items():
            torch.testing.assert_close(weight, other["weights"][name], rtol=0, atol=1e-5)


# ── features ──


def test_features_are_those_of_a_plain_forward(case: Case) -> None:
    features = case.result["two ranks"]["features"]
    mask = case.action_mask.float()
    with torch.no_grad():
        output = case.model(case.sequences, attention_mask=case.attention_mask, output_hidden_states=True)
    log_distribution = (output.logits[:, :-1] / TEMPERATURE).log_softmax(-1)
    log_probs = log_distribution.gather(-1, case.sequences[:, 1:, None]).squeeze(-1) * mask
    entropy = -(log_distribution.exp() * log_distribution).sum(-1) * mask
    last = case.attention_mask.sum(1) - 1
    hidden = output.hidden_states[-1][torch.arange(len(last)), last]
    assert_agree(torch.cat([item["log_probs"] for item in features]), log_probs)
    assert_agree(torch.cat([item["entropy"] for item in features]), entropy)
    assert_agree(torch.cat([item["hidden"] for item in features]), hidden)


def test_reference_answers_are_scored_at_temperature_one(case: Case) -> None:
    for row, answer in enumerate(case.answers):
        ids = torch.cat([case.sequences[row, : answer.context], torch.tensor(answer.token_ids)])[None]
        with torch.no_grad():
            log_probs = token_log_probs(case.model, ids, torch.ones_like(ids), temperature=1.0)
        expected = log_probs[0, answer.context + answer.reference_start - 1 :].mean()
        found = torch.cat([item["reference_log_prob"] for item in case.result["two ranks"]["features"]])
        assert_agree(found[row], expected)


# ── the reference ──


@pytest.mark.parametrize("policy", ["two ranks", "one rank"])
def test_reference_is_mixed_with_the_policy(case: Case, expected_updates: list[dict[str, Any]], policy: str) -> None:
    """ref <- 0.6 policy + 0.4 ref after every update, seen through its log-probs; one of the two has two ranks."""
    model = copy.deepcopy(case.model)
    for number, seen in enumerate(case.result[policy]["reference"]):
        if number > 0:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    weight = expected_updates[number - 1]["weights"][name]
                    parameter.copy_(ALPHA * weight + (1 - ALPHA) * parameter)
        with torch.no_grad():
            expected = token_log_probs(model, case.sequences, case.attention_mask, TEMPERATURE) * case.action_mask
        assert_agree(torch.cat(seen["log_probs"]), expected)


def assert_agree(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
