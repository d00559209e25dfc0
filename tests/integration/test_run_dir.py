"""One run from start to end: what it leaves behind, and every logged number again from the rollout files."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf_maestro.conductor import Conductor
from openrlhf_maestro.data.tasks import FAMILIES, check

pytestmark = pytest.mark.integration

COMPONENTS = ("format", "perplexity", "entropy", "length", "preference")
RANKED = ("perplexity", "entropy", "preference")
GROUP, PROMPTS, MAX_NEW_TOKENS, STEPS, BETA, EMPHASIS, MIN_PROB = 4, 4, 32, 4, 0.1, 0.5, 1e-4
TIMES = {"step_s", "generation_s", "experience_s", "update_s", "sync_s"}


@pytest.fixture(scope="module")
def steps(main_run: Any) -> list[dict[str, Any]]:
    return main_run.steps()


@pytest.fixture(scope="module")
def frames(main_run: Any) -> list[pd.DataFrame]:
    """Rollouts of each step; NaN is a missing value, as in the file."""
    return [
        pq.read_table(main_run.directory / "rollouts" / f"step_{step:06d}.parquet").to_pandas()
        for step in range(1, STEPS + 1)
    ]


@pytest.fixture(scope="module")
def pairs(steps: list[dict[str, Any]], frames: list[pd.DataFrame]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    return list(zip(steps, frames, strict=True))


def matches(logged: float | None, recomputed: float) -> bool:
    """Logged as null where it is no number."""
    if logged is None:
        return not math.isfinite(recomputed)
    return logged == pytest.approx(recomputed, rel=2e-5, abs=2e-6)


# ── files ──


def test_files(main_run: Any) -> None:
    directory = main_run.directory
    assert {path.name for path in directory.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "rollouts",
        "evaluations",
        "conductor",
        "checkpoints",
        "model",
        "logs",
        "report.html",
    }
    assert {path.name for path in (directory / "rollouts").iterdir()} == {
        f"step_00000{n}.parquet" for n in (1, 2, 3, 4)
    }
    assert {path.name for path in (directory / "evaluations").iterdir()} == {f"step_00000{n}.parquet" for n in (0, 4)}
    assert {path.name for path in (directory / "checkpoints").iterdir()} == {"global_step_2", "global_step_4"}
    assert {"config.json", "model.safetensors"} <= {path.name for path in (directory / "conductor").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (directory / "model").iterdir()
    }
    workers = {
        "policy_rank0.log",
        "policy_rank1.log",
        "reference_rank0.log",
        "preference_rank0.log",
        "vllm_engine0.log",
    }
    assert workers <= {path.name for path in (directory / "logs").iterdir()}


def test_config_holds_every_option_as_it_was_used(main_run: Any, main_options: dict[str, Any]) -> None:
    import yaml

    from openrlhf_maestro.config.load import load_config
    from openrlhf_maestro.config.schema import MaestroConfig

    path = main_run.directory / "config.yaml"
    config = load_config(MaestroConfig, ["--config", str(path)])
    assert config.model_dump().keys() == yaml.safe_load(path.read_text()).keys()
    for name, value in main_options.items():
        found: Any = config
        for part in name.split("."):
            found = getattr(found, part)
        assert found == (str(value) if name == "run.assets_dir" else value), name


def test_console_is_one_line_a_step(main_run: Any) -> None:
    lines = [line for line in main_run.output.splitlines() if re.match(r"step +\d+/4", line)]
    assert len(lines) == STEPS
    assert str(main_run.directory / "report.html") in main_run.output.replace("\n", "")


def test_report_is_one_file(main_run: Any) -> None:
    page = (main_run.directory / "report.html").read_text()
    assert "<svg" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page), "loads something from elsewhere"
    assert not re.search(r"@import|url\((?!['\"]?(?:#|data:))", page)


# ── metrics.jsonl ──


def test_every_key_is_there(steps: list[dict[str, Any]], frames: list[pd.DataFrame]) -> None:
    keys = {f"time/{name}" for name in TIMES}
    keys |= {f"rollout/{name}" for name in ("tokens", "response_length_mean", "truncated_rate")}
    keys |= {"rollout/logprob_diff_max", "rollout/logprob_diff_mean"}
    keys |= {f"reward/{name}/{of}" for name in COMPONENTS for of in ("raw_mean", "missing_rate", "fault_rate")}
    keys |= {"reward/scalar_mean", "advantage/frac_zero_std"}
    keys |= {f"conductor/{of}/{name}" for name in COMPONENTS for of in ("weight", "action_freq")}
    keys |= {f"conductor/{name}" for name in ("entropy", "temperature", "updates", "meta_loss")}
    keys |= {f"policy/{name}" for name in ("loss", "kl", "grad_norm", "lr")}
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for line, frame in zip(steps, frames, strict=True):
        by_source = {f"conductor/weight/{source}/{name}" for source in set(frame.datasource) for name in COMPONENTS}
        assert keys | by_source <= line.keys()
        finite = [name for name in keys if name != "conductor/meta_loss" and not name.endswith("raw_mean")]
        assert all(math.isfinite(line[name]) for name in finite)
        phases = [line[f"time/{name}"] for name in TIMES - {"step_s"}]
        assert line["time/step_s"] == pytest.approx(sum(phases)) and min(phases) > 0


def test_vllm_and_the_trainer_agree(steps: list[dict[str, Any]]) -> None:
    for line in steps:
        assert 0 < line["rollout/logprob_diff_mean"] < 1e-4
        assert line["rollout/logprob_diff_mean"] <= line["rollout/logprob_diff_max"] < 1e-3


def test_rollout_files(frames: list[pd.DataFrame], main_run: Any) -> None:
    columns = {"step", "prompt", "response", "reference", "datasource", "group", "action", "scalar_reward", "advantage"}
    columns |= {"truncated", "response_tokens"}
    columns |= {f"{kind}_{name}" for kind in ("raw", "norm", "weight") for name in COMPONENTS}
    tokenizer = AutoTokenizer.from_pretrained(main_run.directory / "model")
    for step, frame in enumerate(frames, start=1):
        assert columns <= set(frame.columns)
        assert set(frame.step) == {step}
        assert frame.group.tolist() == [group for group in range(PROMPTS) for _ in range(GROUP)]
        assert (frame.groupby("group").prompt.nunique() == 1).all()
        assert frame.prompt.nunique() == PROMPTS
        assert set(frame.datasource) <= set(FAMILIES)
        assert frame.response_tokens.between(1, MAX_NEW_TOKENS).all()
        assert (frame.response_tokens[frame.truncated] == MAX_NEW_TOKENS).all()
        # The stop token is counted and not shown.
        for text, tokens, truncated in zip(frame.response, frame.response_tokens, frame.truncated, strict=True):
            assert tokenizer.eos_token not in text
            assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= tokens - (not truncated)
    everything = pd.concat(frames)
    assert 0 < everything.truncated.mean() < 1, "this run is to have truncated responses, and whole ones"
    assert everything.response.nunique() > PROMPTS * STEPS, (
        "the responses of a group are sampled with seeds of their own"
    )


# ── metrics, recomputed ──


def test_lengths(pairs: Any) -> None:
    for line, frame in pairs:
        assert line["rollout/tokens"] == frame.response_tokens.sum()
        assert matches(line["rollout/response_length_mean"], frame.response_tokens.mean())
        assert matches(line["rollout/truncated_rate"], frame.truncated.mean())


def test_raw_rewards(pairs: Any) -> None:
    for line, frame in pairs:
        for name in COMPONENTS:
            raw = frame[f"raw_{name}"].to_numpy(dtype=float)
            finite = raw[np.isfinite(raw)]
            assert matches(line[f"reward/{name}/raw_mean"], finite.mean() if len(finite) else math.nan)
            assert matches(line[f"reward/{name}/missing_rate"], np.isnan(raw).mean())
            assert matches(line[f"reward/{name}/fault_rate"], np.isneginf(raw).mean())


def test_format_and_length_are_those_of_the_text(frames: list[pd.DataFrame]) -> None:
    pattern = re.compile(
        r"\s*<think>((?!</?think>|</?answer>).)*</think>\s*<answer>((?!</?think>|</?answer>).)*</answer>\s*", re.S
    )
    for frame in frames:
        for row in frame.itertuples():
            in_format = pattern.fullmatch(row.response) is not None
            assert row.raw_format == float(in_format)
            assert np.isneginf(row.raw_perplexity) == (not in_format)
            fraction = (MAX_NEW_TOKENS - row.response_tokens) / (MAX_NEW_TOKENS - MAX_NEW_TOKENS / 2)
            assert row.raw_length == pytest.approx(min(1.0, max(0.0, fraction)))
            assert row.raw_entropy >= 0


def rank_by_counting(values: np.ndarray) -> np.ndarray:
    """Average rank by comparing everything with everything; best 1, worst 0; the response's fault is 0."""
    ranks = []
    for mine in values:
        beaten = sum(1.0 if other < mine else 0.5 if other == mine else 0.0 for other in values) - 0.5
        ranks.append(0.0 if mine == -math.inf else beaten / (len(values) - 1))
    return np.array(ranks)


def test_normalised_rewards(frames: list[pd.DataFrame]) -> None:
    for frame in frames:
        for _, group in frame.groupby("group"):
            for name in COMPONENTS:
                raw = group[f"raw_{name}"].to_numpy(dtype=float)
                assert not np.isnan(raw).any(), "nothing is missing in this run"
                expected = rank_by_counting(raw) if name in RANKED else np.where(np.isneginf(raw), 0, raw)
                np.testing.assert_allclose(group[f"norm_{name}"], expected, atol=1e-6)


def test_weights_are_the_mixture_of_pi_and_the_emphasis(pairs: Any) -> None:
    for line, frame in pairs:
        pi = frame[[f"pi_{name}" for name in COMPONENTS]].to_numpy(dtype=float)
        weights = frame[[f"weight_{name}" for name in COMPONENTS]].to_numpy(dtype=float)
        onehot = np.array([[action == name for name in COMPONENTS] for action in frame.action], dtype=float)
        np.testing.assert_allclose(pi.sum(1), 1, atol=1e-6)
        assert (pi >= MIN_PROB).all()
        np.testing.assert_allclose(weights, (1 - EMPHASIS) * pi + EMPHASIS * onehot, atol=1e-6)
        assert matches(line["conductor/entropy"], -(pi * np.log(pi)).sum(1).mean())
        for k, name in enumerate(COMPONENTS):
            assert matches(line[f"conductor/weight/{name}"], pi[:, k].mean())
            assert matches(line[f"conductor/action_freq/{name}"], onehot[:, k].mean())
            for source in set(frame.datasource):
                of_source = pi[(frame.datasource == source).to_numpy(), k].mean()
                assert matches(line[f"conductor/weight/{source}/{name}"], of_source)


def test_scalar_reward_and_advantage(pairs: Any) -> None:
    for line, frame in pairs:
        norm = frame[[f"norm_{name}" for name in COMPONENTS]].to_numpy(dtype=float)
        weights = frame[[f"weight_{name}" for name in COMPONENTS]].to_numpy(dtype=float)
        present = ~np.isnan(norm)
        scalar = np.where(present, weights * norm, 0).sum(1) / (weights * present).sum(1)
        np.testing.assert_allclose(frame.scalar_reward, scalar, atol=1e-6)
        assert matches(line["reward/scalar_mean"], scalar.mean())
        constant = 0
        for _, group in frame.groupby("group"):
            rewards = group.scalar_reward.to_numpy(dtype=float)
            if np.ptp(rewards) == 0:
                constant += 1
                expected = np.zeros(len(rewards))
            else:
                expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
            np.testing.assert_allclose(group.advantage, expected, atol=1e-4)
        assert matches(line["advantage/frac_zero_std"], constant / PROMPTS)


def test_logprob_differences(pairs: Any) -> None:
    for line, frame in pairs:
        mean = (frame.logprob_diff_mean * frame.response_tokens).sum() / frame.response_tokens.sum()
        assert line["rollout/logprob_diff_mean"] == pytest.approx(mean, rel=1e-4)
        assert line["rollout/logprob_diff_max"] == pytest.approx(frame.logprob_diff_max.max(), rel=1e-4)


def test_policy_loss_and_kl(pairs: Any) -> None:
    """On-policy every ratio is 1, so that the loss is known without a forward."""
    for line, frame in pairs:
        whole = frame[~frame.truncated]
        assert (frame.policy_loss_tokens[frame.truncated] == 0).all(), "a truncated response adds no loss"
        assert (frame.policy_loss_tokens <= frame.response_tokens).all()
        # At least the top 20 %; more only where several tokens share the threshold's entropy.
        assert frame.policy_loss_tokens.sum() >= math.floor(0.2 * whole.response_tokens.sum())
        kl_sum = (whole.kl * whole.response_tokens).sum()
        assert line["policy/kl"] == pytest.approx(kl_sum / whole.response_tokens.sum(), rel=1e-3, abs=1e-8)
        denominator = PROMPTS * GROUP * MAX_NEW_TOKENS
        loss = (-(frame.advantage * frame.policy_loss_tokens).sum() + BETA * kl_sum) / denominator
        assert line["policy/loss"] == pytest.approx(loss, rel=1e-3, abs=1e-6)
    # The first step starts at the reference; after its update the policy has left it.
    kl = [line["policy/kl"] for line, _ in pairs]
    assert kl[0] == pytest.approx(0, abs=1e-9) and kl[1] > 1e-6


def test_linear_schedule_of_the_learning_rate(steps: list[dict[str, Any]]) -> None:
    """1e-3 falls to 0 over the run's four updates; what is logged is the rate that the step used."""
    assert [line["policy/lr"] for line in steps] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_conductor_updates_every_second_step(steps: list[dict[str, Any]], frames: list[pd.DataFrame]) -> None:
    assert [line["conductor/updates"] for line in steps] == [0, 1, 1, 2]
    assert [line["conductor/meta_loss"] is None for line in steps] == [True, False, True, False]
    # W and b start at 0: pi is uniform until the first update, and not after it.
    for line in steps[:2]:
        assert all(line[f"conductor/weight/{name}"] == pytest.approx(0.2) for name in COMPONENTS)
        assert line["conductor/entropy"] == pytest.approx(math.log(5))
    assert max(abs(steps[2][f"conductor/weight/{name}"] - 0.2) for name in COMPONENTS) > 1e-3
    assert steps[2]["conductor/entropy"] < math.log(5)
    # The first meta-loss, at uniform pi: -mean(A) log(1/5) - lambda log 5, over the responses that are not truncated.
    buffered = pd.concat(frames[:2])
    advantages = buffered.advantage[~buffered.truncated]
    expected = -advantages.mean() * math.log(0.2) - 1e-3 * math.log(5)
    assert steps[1]["conductor/meta_loss"] == pytest.approx(expected, abs=1e-5)


# ── evaluation ──


@pytest.mark.parametrize("step", [0, STEPS])
def test_held_out_accuracy(main_run: Any, step: int) -> None:
    line = next(line for line in main_run.metrics() if line["step"] == step)
    frame = pd.read_parquet(main_run.directory / "evaluations" / f"step_{step:06d}.parquet")
    assert len(frame) == 40 and frame.prompt.nunique() == 40
    right = [check(*row) for row in zip(frame.datasource, frame.prompt, frame.reference, frame.response, strict=True)]
    assert frame.right.tolist() == right
    for source, verdicts in frame.assign(right=right).groupby("datasource").right:
        assert line[f"eval/{source}/accuracy"] == pytest.approx(verdicts.mean())
    assert line["eval/overall/accuracy"] == pytest.approx(np.mean(right))


def test_held_out_prompts_are_not_trained_on(main_run: Any, frames: list[pd.DataFrame]) -> None:
    held_out = set(pd.read_parquet(main_run.directory / "evaluations" / "step_000000.parquet").prompt)
    assert not held_out & set(pd.concat(frames).prompt)


# ── what was trained ──


def log_prob_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)


def test_final_model_is_a_trained_one(main_run: Any, cold_start: Any, frames: list[pd.DataFrame]) -> None:
    trained = AutoModelForCausalLM.from_pretrained(main_run.directory / "model")
    before = AutoModelForCausalLM.from_pretrained(cold_start)
    tokenizer = AutoTokenizer.from_pretrained(main_run.directory / "model")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(cold_start).get_vocab()
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(cold_start).chat_template
    row = frames[0].iloc[0]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": row.prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text + row.response, add_special_tokens=False, return_tensors="pt")["input_ids"]
    after_log_prob, before_log_prob = log_prob_of(trained, ids), log_prob_of(before, ids)
    assert after_log_prob.isfinite().all()
    assert (after_log_prob - before_log_prob).abs().max() > 1e-3


def test_vllm_serves_the_final_model(main_run: Any, frames: list[pd.DataFrame], run_python: Any) -> None:
    """Greedy continuations of a few prompts, in vLLM and in transformers."""
    model_folder = main_run.directory / "model"
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    prompts = [
        tokenizer(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            ),
            add_special_tokens=False,
        )["input_ids"]
        for text in dict.fromkeys(frames[0].prompt)
    ]
    served = json.loads(run_python(SERVE, str(model_folder), json.dumps(prompts)).splitlines()[-1])
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    for prompt, tokens in zip(prompts, served, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=24, do_sample=False
        )[0, len(prompt) :].tolist()
        assert tokens == expected


SERVE = """
import json, sys
from vllm import LLM, SamplingParams
engine = LLM(sys.argv[1], dtype="float32", max_model_len=256, enforce_eager=True)
prompts = [{"prompt_token_ids": ids} for ids in json.loads(sys.argv[2])]
outputs = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]), flush=True)
"""


def test_conductor_has_learnt(main_run: Any, steps: list[dict[str, Any]]) -> None:
    conductor = Conductor.from_pretrained(main_run.directory / "conductor")
    assert conductor.reward_names == list(COMPONENTS)
    assert conductor.temperature == pytest.approx(steps[-1]["conductor/temperature"])
    weight = load_file(main_run.directory / "conductor" / "model.safetensors")["head.weight"]
    assert weight.shape == (len(COMPONENTS), 128)
    # Two AdamW updates at 1e-2, each moving an entry by about the learning rate.
    assert 5e-3 < weight.abs().max() < 2.1e-2
