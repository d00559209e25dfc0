"""Runs unlike the quick start's: an untied policy without a Conductor, real rows, a cold start."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf_maestro.data.assets import ensure_asset

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MAESTRO_TEST_DATA") or REPOSITORY.parent / "shared" / "data")


# ── an untied policy, equal weights ──


@pytest.fixture(scope="module")
def untied(finished: Callable[..., Any], small_options: dict[str, Any]) -> Any:
    return finished(
        small_options
        | {
            "run.max_steps": 3,
            # Not cold-started: it would take a minute, and random weights show the same.
            "actor.model_name_or_path": str(ensure_asset("policy_base_untied", REPOSITORY / "assets")),
            "objective.mask_truncated": "false",
            "actor.adam.lr": 1e-3,
            "conductor.kind": "equal",
            "algo.kl.init_coef": 0,
            "rewards.components": "[{kind: format}, {kind: entropy}, {kind: length}]",
            "eval.dataset": "null",
        }
    )


def test_untied_head_reaches_vllm(untied: Any) -> None:
    tensors = load_file(untied.directory / "model" / "model.safetensors")
    assert not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    steps = untied.steps()
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:
        assert line["policy/grad_norm"] > 0
        assert line["rollout/logprob_diff_mean"] < 1e-4 and line["rollout/logprob_diff_max"] < 1e-3


def test_equal_weights_compute_nothing_of_the_conductor(untied: Any) -> None:
    for line in untied.steps():
        conductor = {name for name in line if name.startswith("conductor/")}
        assert all(name.startswith("conductor/weight/") for name in conductor)
        assert line["conductor/weight/entropy"] == pytest.approx(1 / 3)
    rollouts = untied.rollouts(1)
    assert set(rollouts["action"]) == {None}
    for values in zip(
        rollouts["norm_format"],
        rollouts["norm_entropy"],
        rollouts["norm_length"],
        rollouts["scalar_reward"],
        strict=True,
    ):
        assert values[3] == pytest.approx(sum(values[:3]) / 3)
    assert not (untied.directory / "conductor").exists()


def test_no_reference_and_no_preference_model_are_started(untied: Any) -> None:
    logs = {path.name for path in (untied.directory / "logs").iterdir()}
    assert logs == {"policy_rank0.log", "policy_rank1.log", "vllm_engine0.log"}
    assert all(line["policy/kl"] == 0 for line in untied.steps())
    assert set(untied.rollouts(1)["kl"]) == {None}


# ── real rows ──


def test_real_rows(finished: Callable[..., Any], small_options: dict[str, Any]) -> None:
    if not (DATA / "nover_csv").is_dir():
        pytest.skip(f"the shared data are not at {DATA}")
    run = finished(
        {
            "run.assets_dir": small_options["run.assets_dir"],
            "actor.model_name_or_path": DATA / "qwen3_06b",
            "data.prompt_dataset": DATA / "nover_csv" / "webinstruct.csv",
        },
        config="real_rows_cpu",
    )
    steps = run.steps()
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:
        assert line["rollout/logprob_diff_mean"] < 1e-4 and line["rollout/logprob_diff_max"] < 1e-3
    config = json.loads((run.directory / "model" / "config.json").read_text())
    assert config["vocab_size"] == 151_936
    known = (DATA / "nover_csv" / "webinstruct.csv").read_text()
    assert all(reference.splitlines()[0].replace('"', '""') in known for reference in set(run.rollouts(1)["reference"]))


# ── cold start ──


def response_loss(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> float:
    """Mean negative log-prob of the responses' tokens, the stop token included."""
    total, count = 0.0, 0
    for row in rows:
        messages = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        whole = prompt + row["response"] + tokenizer.eos_token
        ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        total -= float(log_probs[start - 1 :].sum())
        count += len(log_probs) - start + 1
    return total / count


def test_sft_lowers_the_loss_on_its_rows(
    finished: Callable[..., Any], small_options: dict[str, Any], tmp_path: Path
) -> None:
    assets = small_options["run.assets_dir"]
    with (ensure_asset("tasks", assets) / "train.jsonl").open() as file:
        rows = [json.loads(next(file)) for _ in range(16)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tuned = tmp_path / "tuned"
    finished(
        {
            "run.assets_dir": assets,
            "model.model_name_or_path": "bundled:policy_base",
            "data.dataset": data,
            "data.max_len": 256,
            "train.batch_size": 8,
            "train.micro_batch_size": 8,
            "train.max_epochs": 2,
            "adam.lr": 5e-3,
            "ckpt.output_dir": tuned,
        },
        config="",
        command="sft",
    )
    base = ensure_asset("policy_base", assets)
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    before = response_loss(AutoModelForCausalLM.from_pretrained(base), tokenizer, rows)
    after = response_loss(AutoModelForCausalLM.from_pretrained(tuned), tokenizer, rows)
    assert after < before - 0.2
