"""The update, the features, the reference's synchronisation and a resume under every way of dividing the work.

Each scenario's workers get the same eight hand-made responses; what comes out is compared with plain PyTorch in one
process: one batch, no DeepSpeed.
"""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from openrlhf_maestro.objective import kl_loss, policy_loss

pytestmark = pytest.mark.integration

TEMPERATURE, LIMIT, BETA, ALPHA, QUANTILE, EPS = 0.8, 10, 0.1, 0.6, 0.3, 0.2
LR, ADAM_EPS, MAX_NORM, UPDATES = 1e-2, 1e-2, 1.0, 2
# Neither divides over two ranks: ZeRO's partitions are padded, and AutoTP's slices differ.
VOCABULARY, INTERMEDIATE = 101, 37
UNIFORM = -math.log(VOCABULARY)
PROMPT_TOKENS = [3, 5, 2, 4, 6, 2, 3, 4]
RESPONSE_TOKENS = [7, 4, 10, 2, 5, 9, 1, 6]
BUDGET = 24
BY_TOKENS = {"train.dynamic_batch_enable": True, "train.max_tokens_per_gpu": BUDGET}
# Two data-parallel ranks, each of two GPUs; the reference is one such rank.
AUTO_TP = {"ds.tensor_parallel_size": 2, "actor.num_gpus_per_node": 4}
SCENARIOS: dict[str, dict[str, Any]] = {
    "ZeRO-0": {"ds.zero_stage": 0, "train.micro_batch_size": 2},
    "ZeRO-1 by tokens": {"ds.zero_stage": 1} | BY_TOKENS,
    "ZeRO-2 by tokens": {"ds.zero_stage": 2} | BY_TOKENS,
    "ZeRO-3 by tokens": {"ds.zero_stage": 3, "conductor.context_layer": "middle", "conductor.context_pooling": "mean"}
    | BY_TOKENS,
    "AutoTP": AUTO_TP | {"ds.zero_stage": 0, "train.micro_batch_size": 2, "conductor.context_layer": "first"},
    "AutoTP, ZeRO-1 by tokens": AUTO_TP | BY_TOKENS | {"ds.zero_stage": 1, "train.max_tokens_per_gpu": BUDGET // 2},
    "AutoTP, ZeRO-2, untied": AUTO_TP
    | {"ds.zero_stage": 2, "train.micro_batch_size": 2, "actor.model_name_or_path": "untied"},
}


@dataclass
class Case:
    models: dict[str, Any]
    batch: dict[str, Tensor]
    result: dict[str, Any]

    def model(self, scenario: str) -> Any:
        return copy.deepcopy(self.models[SCENARIOS[scenario].get("actor.model_name_or_path", "tied")])


def make_model(tied: bool) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.04,  # log-probs of about UNIFORM
    )
    return Qwen3ForCausalLM(config).eval()


def save(model: Any, folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<eos>": 0, "word": 1}, unk_token="word"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>").save_pretrained(folder)


def responses() -> dict[str, Tensor]:
    """Eight right-padded responses, and what the update reads of them: log-probs near the model's, but not its own."""
    generator = torch.Generator().manual_seed(1)
    width = max(map(sum, zip(PROMPT_TOKENS, RESPONSE_TOKENS, strict=True)))
    shape = (len(PROMPT_TOKENS), width)
    sequences, attention = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    action = torch.zeros(shape[0], width - 1, dtype=torch.long)
    for row, (prompt, response) in enumerate(zip(PROMPT_TOKENS, RESPONSE_TOKENS, strict=True)):
        sequences[row, : prompt + response] = torch.randint(1, VOCABULARY, (prompt + response,), generator=generator)
        attention[row, : prompt + response] = 1
        action[row, prompt - 1 : prompt + response - 1] = 1
    noise = lambda: torch.randn(action.shape, generator=generator) * action  # noqa: E731
    return {
        "sequences": sequences,
        "attention_mask": attention,
        "action_mask": action,
        "old_log_probs": UNIFORM + 0.2 * noise(),
        "ref_log_probs": UNIFORM + 0.5 * noise(),
        "entropy": 2 + noise(),
        "advantages": torch.tensor([1.0, -1.0, 2.0, -2.0, 1.5, 0.0, 0.5, -0.5]) * 5,
        "dropped": torch.tensor([False, False, True, False, False, False, False, False]),
    }


def halves(tensor: Tensor) -> list[Tensor]:
    return [tensor[:4].clone(), tensor[4:].clone()]


def configuration(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "run": {"dir": str(folder / "run"), "device": "cpu"},
        "actor": {
            "model_name_or_path": "tied",
            "num_gpus_per_node": 2,
            "adam": {"lr": LR, "eps": ADAM_EPS},
            "lr_scheduler": "constant",
            "max_norm": MAX_NORM,
        },
        "ref": {"num_gpus_per_node": 2},
        "rewards": {"components": [{"kind": "format"}, {"kind": "length"}]},
        "objective": {"importance_sampling_level": "token", "top_entropy_quantile": QUANTILE},
        "data": {"prompt_dataset": "none.jsonl", "max_len": 20},
        "rollout": {"batch_size": 2, "n_samples_per_prompt": 4, "micro_batch_size": 4, "max_new_tokens": LIMIT},
        "train": {"batch_size": 8},
        "algo": {"kl": {"init_coef": BETA}},
        "ds": {"logits_chunk_tokens": 5},
    }
    config["rollout"]["temperature"] = TEMPERATURE
    for name, value in changes.items():
        section, option = name.split(".")
        config.setdefault(section, {})[option] = value
    config["actor"]["model_name_or_path"] = str(folder / config["actor"]["model_name_or_path"])
    return config


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("parallel")
    models = {"tied": make_model(True), "untied": make_model(False)}
    for name, model in models.items():
        save(model, folder / name)
    batch = responses()
    tensors = ("sequences", "attention_mask", "action_mask")
    inputs = {
        "configs": {name: configuration(folder, changes) for name, changes in SCENARIOS.items()},
        "micro_batches": [
            {name: halves(batch[name])[half] for name in tensors}
            | {
                "action_log_probs": halves(batch["old_log_probs"])[half],
                "rollout_log_probs": halves(batch["old_log_probs"])[half],
                "base_action_log_probs": halves(batch["ref_log_probs"])[half],
                "info": {
                    "advantage": halves(batch["advantages"])[half],
                    "loss_dropped": halves(batch["dropped"])[half],
                    "token_entropy": halves(batch["entropy"])[half],
                },
            }
            for half in (0, 1)
        ],
        "features": {name: halves(batch[name]) for name in tensors}
        | {"with_hidden": [True, True], "branch": [None, None]},
        "updates": UPDATES,
        "beta": BETA,
        "alpha": ALPHA,
    }
    torch.save(inputs, folder / "case.pt")
    drive(folder)
    yield Case(models, batch, torch.load(folder / "result.pt", weights_only=False))


def drive(folder: Path) -> None:
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
    logs = "".join(path.read_text()[-2000:] for path in (folder / "run" / "logs").glob("*.log"))
    assert process.returncode == 0, (folder / "output").read_text()[-4000:] + logs[-4000:]


def log_distribution(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(8, T - 1, V) at the sampling temperature, and (8, T, H) of embeddings, block 1 and block 2 (after the norm)."""
    output = model(batch["sequences"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    return (output.logits[:, :-1] / TEMPERATURE).log_softmax(-1), output.hidden_states


def context(scenario: str, states: tuple[Tensor, ...]) -> Tensor:
    """(8, H). Half of two blocks is one: `middle` and `first` are block 1."""
    settings = SCENARIOS[scenario]
    own = states[-1 if settings.get("conductor.context_layer", "last") == "last" else 1]
    ends = [prompt + response for prompt, response in zip(PROMPT_TOKENS, RESPONSE_TOKENS, strict=True)]
    if settings.get("conductor.context_pooling") == "mean":
        return torch.stack([own[row, PROMPT_TOKENS[row] : end].mean(0) for row, end in enumerate(ends)])
    return torch.stack([own[row, end - 1] for row, end in enumerate(ends)])


def log_probs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    distribution, _ = log_distribution(model, batch)
    return distribution.gather(-1, batch["sequences"][:, 1:, None]).squeeze(-1) * batch["action_mask"]


def plain_updates(model: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.999), eps=ADAM_EPS, weight_decay=0.0)
    mask = batch["action_mask"].float() * (~batch["dropped"]).float()[:, None]
    shared: dict[str, Any] = {"loss_type": "dr_grpo", "max_completion_length": LIMIT}
    updates = []
    for _ in range(UPDATES):
        optimizer.zero_grad()
        current = log_probs(model, batch)
        loss = policy_loss(
            current,
            batch["old_log_probs"],
            batch["advantages"],
            mask,
            batch["entropy"],
            importance_sampling_level="token",
            top_entropy_quantile=QUANTILE,
            entropy_mask="trl",
            eps_low=EPS,
            eps_high=EPS,
            **shared,
        ) + BETA * kl_loss(current, batch["ref_log_probs"], mask, **shared)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        updates.append({"loss": loss.item(), "grad_norm": norm.item(), "weights": weights})
    return updates


def assert_weights(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_update_is_that_of_one_process(case: Case, scenario: str) -> None:
    """1e-5 of weights that move by 1e-2 an update: fp32 sums in another order differ by about 1e-6."""
    expected = plain_updates(case.model(scenario), case.batch)
    start = dict(case.model(scenario).named_parameters())
    moved = max(float((weight - start[name].detach()).abs().max()) for name, weight in expected[0]["weights"].items())
    assert moved > 1e-3
    for update, plain in zip(case.result[scenario]["updates"], expected, strict=True):
        assert update["status"]["loss"] == pytest.approx(plain["loss"], rel=1e-4, abs=1e-6)
        assert update["status"]["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
        assert_weights(update["weights"], plain["weights"], atol=1e-5)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_rank_runs_as_many_forwards(case: Case, scenario: str) -> None:
    """Four responses a rank: two micro-batches of 2, or by tokens as many as hold 24 tokens each."""
    forwards = case.result[scenario]["forwards"]
    lengths = [prompt + response for prompt, response in zip(PROMPT_TOKENS, RESPONSE_TOKENS, strict=True)]
    shares = [lengths[:4], lengths[4:]]
    if "train.dynamic_batch_enable" in SCENARIOS[scenario]:
        # By hand: 12 + 10 | 9 6 -> {12, 10}, {9, 6}; {11, 11}, {10, 4}: two forwards on each rank.
        assert [sorted(share) for share in shares] == [[6, 9, 10, 12], [4, 10, 11, 11]]
    assert forwards == [2] * len(forwards)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_conductors_context_takes_no_forward(case: Case, scenario: str) -> None:
    """One a micro-batch, of which each rank has one, whether a Conductor reads the policy or not."""
    forwards = case.result[scenario]["feature_forwards"]
    ranks = SCENARIOS[scenario].get("actor.num_gpus_per_node", 2)
    assert forwards == {True: [1] * ranks, False: [1] * ranks}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_features_are_those_of_one_process(case: Case, scenario: str) -> None:
    features = case.result[scenario]["features"]
    model, batch = case.model(scenario), case.batch
    with torch.no_grad():
        distribution, states = log_distribution(model, batch)
        expected = log_probs(model, batch)
    entropy = -(distribution.exp() * distribution).sum(-1) * batch["action_mask"]
    assert_agree(torch.cat([item["log_probs"] for item in features]), expected)
    assert_agree(torch.cat([item["entropy"] for item in features]), entropy)
    assert_agree(torch.cat([item["hidden"] for item in features]), context(scenario, states))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_reference_is_mixed_with_the_policy(case: Case, scenario: str) -> None:
    """alpha policy + (1 - alpha) reference, from both models' whole weights; 1e-6 is a rounding of fp32."""
    result = case.result[scenario]
    model = case.model(scenario)
    state = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for number, seen in enumerate(result["reference"]):
        if number > 0:
            policy = result["updates"][number - 1]["weights"]
            state = {name: ALPHA * policy[name] + (1 - ALPHA) * weight for name, weight in state.items()}
        assert_weights(seen["weights"], state, atol=1e-6)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state[name])
            assert_agree(torch.cat(seen["log_probs"]), log_probs(model, case.batch))


@pytest.mark.parametrize("policy_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("reference_ranks", [1, 2, 3, 4])
def test_a_reference_rank_gets_what_it_holds_and_no_more(policy_ranks: int, reference_ranks: int) -> None:
    """Under ZeRO-3, where a parameter of n values is cut into stretches of ceil(n / ranks), the last ones shorter."""
    from openrlhf_maestro.workers.shards import overlap

    def stretches(values: Tensor, ranks: int) -> list[tuple[int, Tensor]]:
        size = -(-len(values) // ranks)
        return [(min(rank * size, len(values)), values[rank * size :][:size]) for rank in range(ranks)]

    parameters = {f"{numel} values": torch.arange(float(numel)) for numel in (1, 2, 3, 7, 24, 101)}
    numel = {name: len(values) for name, values in parameters.items()}
    policy = [
        {name: stretches(values, policy_ranks)[rank] for name, values in parameters.items()}
        for rank in range(policy_ranks)
    ]
    for rank in range(reference_ranks):
        received = [overlap(own, numel, rank, reference_ranks) for own in policy]
        for name, values in parameters.items():
            pieces = sorted((part[name] for part in received if name in part), key=lambda piece: piece[0])
            found = torch.cat([values.new_zeros(0), *(piece for _, piece in pieces)])
            assert torch.equal(found, stretches(values, reference_ranks)[rank][1])
            assert all(torch.equal(piece, values[start : start + len(piece)]) for start, piece in pieces)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_checkpoint_brings_back_policy_optimiser_and_reference(case: Case, scenario: str) -> None:
    """Saved after the first update and synchronisation; the second update is then made twice."""
    result = case.result[scenario]
    assert_weights(result["resumed"]["reference"]["weights"], result["reference"][1]["weights"], atol=0)
    assert_weights(result["resumed"]["update"]["weights"], result["updates"][1]["weights"], atol=1e-6)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_final_model_is_whole(case: Case, scenario: str) -> None:
    result = case.result[scenario]
    weights = dict(result["resumed"]["update"]["weights"])
    # OpenRLHF writes a tied head a second time under some stages.
    if "lm_head.weight" in result["final"]:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    assert_weights(result["final"], weights, atol=0)


def test_a_run_under_auto_tp_by_tokens_is_that_of_zero_3(
    main_run: Any, main_options: dict[str, Any], finished: Callable[..., Any]
) -> None:
    """The same first step; vLLM has the policy's weights after each, and a synchronised reference does not stop it."""
    options = {"ds.zero_stage": 1, "ds.tensor_parallel_size": 2, "ref.num_gpus_per_node": 2}
    by_tokens = {"train.dynamic_batch_enable": "true", "train.max_tokens_per_gpu": 256}
    run = finished(main_options | options | by_tokens | {"eval.dataset": "null"})
    for name in ("reward/scalar_mean", "policy/loss", "policy/kl", "policy/grad_norm"):
        assert run.steps()[0][name] == pytest.approx(main_run.steps()[0][name], rel=1e-3, abs=1e-6), name
    assert len(run.steps()) == len(main_run.steps())
    assert all(step["rollout/logprob_diff_mean"] < 1e-5 for step in run.steps())


def assert_agree(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
