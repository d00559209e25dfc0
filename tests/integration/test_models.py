"""The reference answer's log-probs and the preference scores on two real ranks, against plain transformers.

Expected values: transformers' own forward of one row at a time, without padding. Tolerance 1e-4 in fp32: the orders of
summation differ by about 1e-6.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from openrlhf_maestro.rewards import ReferenceBranch, TeacherForced

pytestmark = pytest.mark.integration

VOCABULARY, TEMPERATURE = 101, 0.8
# Of eight responses, two a micro-batch: prompt, reasoning, rest of the response, answer prefix, reference.
PROMPT, REASONING, REST = [3, 5, 2, 4, 6, 2, 3, 4], [7, 4, 9, 2, 5, 8, 1, 6], [3, 2, 6, 5, 4, 1, 8, 3]
PREFIX, REFERENCE = [2, 0, 3, 2, 1, 2, 0, 2], [3, 1, 2, 5, 2, 4, 1, 3]
FAULTS = (0, 1, 3, 6)  # of the first rank's first micro-batch all, of its second one, of the other rank's one

SKYWORK = "Skywork/Skywork-Reward-V2-Qwen3-0.6B"
QWEN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
)
LLAMA_TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
)
SPECIAL = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
SPECIAL += ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
MAX_LEN = 160  # the last response is longer
QUESTIONS = ["Name a colour.", "Why is the sky blue?", "2 + 2", "Hi"] * 2
RESPONSES = ["Red", "Air scatters short waves more than long ones.", "4", "Hello!", "Green, or blue", "No idea", "5"]
RESPONSES += ["word " * 40]


def sizes() -> dict[str, Any]:
    return {
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,  # far from uniform predictions
    }


def save_policy(folder: Path, family: str, tied: bool) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    settings = sizes() | {"vocab_size": VOCABULARY, "tie_word_embeddings": tied}
    model = (
        LlamaForCausalLM(LlamaConfig(**settings)) if family == "llama" else Qwen3ForCausalLM(Qwen3Config(**settings))
    )
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<eos>": 0, "word": 1}, unk_token="word"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>").save_pretrained(folder)
    return model.eval()


def save_reward_model(folder: Path, family: str) -> None:
    """A tiny random reward model with a token a byte, in transformers' own layout."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import (
        LlamaConfig,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
        Qwen3Config,
        Qwen3ForSequenceClassification,
    )

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spoken = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    spoken.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spoken.decoder = decoders.ByteLevel()
    spoken.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    bos = SPECIAL[0] if family == "llama" else None
    if bos is not None:
        spoken.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, spoken.token_to_id(bos))]
        )
    template = LLAMA_TEMPLATE if family == "llama" else QWEN_TEMPLATE
    pad = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spoken, bos_token=bos, pad_token=pad, chat_template=template)
    torch.manual_seed(0)
    settings = sizes() | {"vocab_size": len(tokenizer), "num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
    if family == "llama":
        model: Any = LlamaForSequenceClassification(LlamaConfig(**settings))
    else:
        model = Qwen3ForSequenceClassification(Qwen3Config(**settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Rows:
    """Random tokens of the lengths above, and the four micro-batches of `PolicyWorker.features`."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        lengths = list(zip(PROMPT, REASONING, REST, PREFIX, REFERENCE, strict=True))
        parts = [
            [torch.randint(1, VOCABULARY, (size,), generator=generator).tolist() for size in row] for row in lengths
        ]
        self.responses = [prompt + reasoning + rest for prompt, reasoning, rest, _, _ in parts]
        self.forced = [prompt + reasoning + prefix + own for prompt, reasoning, _, prefix, own in parts]
        rows = [
            None if row in FAULTS else TeacherForced(len(prompt) + len(reasoning), prefix + own, len(prefix))
            for row, (prompt, reasoning, _, prefix, own) in enumerate(parts)
        ]
        self.features: dict[str, list[Any]] = {
            name: [] for name in ("sequences", "attention_mask", "action_mask", "with_hidden", "branch")
        }
        for start in range(0, 8, 2):
            pair = self.responses[start : start + 2]
            width = max(map(len, pair))
            sequences = torch.tensor([row + [0] * (width - len(row)) for row in pair])
            action_mask = (sequences[:, 1:] > 0).long()
            for row, prompt in enumerate(PROMPT[start : start + 2]):
                action_mask[row, : prompt - 1] = 0
            for name, value in (
                ("sequences", sequences),
                ("attention_mask", (sequences > 0).long()),
                ("action_mask", action_mask),
                ("with_hidden", True),
                ("branch", ReferenceBranch.of(rows[start : start + 2])),
            ):
                self.features[name].append(value)


def configuration(folder: Path, model: Path, component: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {
        "run": {"dir": str(folder / "run"), "device": "cpu"},
        "actor": {"model_name_or_path": str(model), "num_gpus_per_node": 2},
        "ref": {"num_gpus_per_node": 1},
        "rewards": {"components": [{"kind": "format"}, component]},
        "data": {"prompt_dataset": "none.jsonl", "max_len": 64},
        "rollout": {
            "batch_size": 2,
            "n_samples_per_prompt": 4,
            "micro_batch_size": 2,
            "max_new_tokens": 32,
            "temperature": TEMPERATURE,
        },
        "train": {"batch_size": 8, "micro_batch_size": 2},
        "ds": {"logits_chunk_tokens": 5},  # several chunks a micro-batch
    } | sections


class Case:
    """Two policies and three preference models as groups of ranks, one after the other, and what they said."""

    def __init__(self, folder: Path) -> None:
        self.rows = Rows()
        self.policies = {
            "qwen3": save_policy(folder / "qwen3", "qwen3", tied=True),
            "llama": save_policy(folder / "llama", "llama", tied=False),
        }
        hub = folder / "hub_home" / "hub" / f"models--{SKYWORK.replace('/', '--')}"
        self.reward_models = {"skywork": hub / "snapshots" / ("0" * 40), "llama": folder / "reward_llama"}
        save_reward_model(self.reward_models["skywork"], "qwen3")
        save_reward_model(self.reward_models["llama"], "llama")
        (hub / "refs").mkdir()
        (hub / "refs" / "main").write_text("0" * 40)
        preferences = {
            "skywork": {"model_name_or_path": SKYWORK},
            "llama whole": {"model_name_or_path": str(self.reward_models["llama"]), "zero_stage": 0},
            "llama bf16": {"model_name_or_path": str(self.reward_models["llama"]), "num_gpus_per_node": 1},
        }
        shared = {"num_gpus_per_node": 2, "max_len": MAX_LEN}
        perplexity = {"kind": "perplexity", "shared_forward": True}
        configs = {
            "qwen3": configuration(folder, folder / "qwen3", perplexity),
            "llama": configuration(folder, folder / "llama", perplexity),
        } | {
            name: configuration(folder, folder / "qwen3", {"kind": "preference"}, reward=shared | model)
            for name, model in preferences.items()
        }
        configs["llama"]["ds"]["attn_implementation"] = "eager"
        configs["llama bf16"]["ds"] = {"param_dtype": "bf16"}
        conversations = {
            "messages": [[[{"role": "user", "content": text}] for text in QUESTIONS[i : i + 2]] for i in (0, 2, 4, 6)],
            "responses": [RESPONSES[i : i + 2] for i in (0, 2, 4, 6)],
        }
        case = {
            "configs": configs,
            "policies": list(self.policies),
            "features": self.rows.features,
            "preferences": list(preferences),
            "conversations": conversations,
        }
        torch.save(case, folder / "case.pt")
        run_drive_models(folder)
        self.result = torch.load(folder / "result.pt", weights_only=False)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("models"))


def run_drive_models(folder: Path) -> None:
    script = Path(__file__).with_name("drive_models.py")
    # The hub's cache is all there is of the hub.
    environment = {"PYTHONPATH": str(script.parents[2]), "HF_HOME": str(folder / "hub_home"), "HF_HUB_OFFLINE": "1"}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(timeout=600)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()
    logs = "".join(path.read_text() for path in (folder / "run" / "logs").glob("*.log"))
    assert process.returncode == 0, (folder / "output").read_text()[-4000:] + logs[-4000:]


def assert_agree(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=1e-4, equal_nan=True)


# ── perplexity ──


@pytest.mark.parametrize("name", ["qwen3 shared", "qwen3 separate", "llama shared", "llama separate"])
def test_reference_answers_at_temperature_one(case: Case, name: str) -> None:
    model = case.policies[name.split()[0]]
    expected = []
    for row, (forced, size) in enumerate(zip(case.rows.forced, REFERENCE, strict=True)):
        with torch.no_grad():
            distribution = model(torch.tensor([forced])).logits[0].log_softmax(-1)
        log_probs = [float(distribution[place - 1, forced[place]]) for place in range(len(forced) - size, len(forced))]
        expected.append(torch.nan if row in FAULTS else sum(log_probs) / size)
    found = torch.cat([item["reference_log_prob"] for item in case.result[name]])
    assert_agree(found, expected)


@pytest.mark.parametrize("name", ["qwen3 shared", "qwen3 separate", "llama shared", "llama separate"])
def test_the_response_is_measured_as_if_alone(case: Case, name: str) -> None:
    model = case.policies[name.split()[0]]
    items = case.result[name]
    for row, response in enumerate(case.rows.responses):
        with torch.no_grad():
            output = model(torch.tensor([response]), output_hidden_states=True)
        distribution = (output.logits[0, :-1] / TEMPERATURE).log_softmax(-1)
        own = slice(PROMPT[row] - 1, len(response) - 1)
        item, place = items[row // 2], row % 2
        assert_agree(
            item["log_probs"][place, own], distribution.gather(-1, torch.tensor(response)[1:, None]).squeeze(-1)[own]
        )
        assert_agree(item["entropy"][place, own], -(distribution.exp() * distribution).sum(-1)[own])
        assert_agree(item["hidden"][place], output.hidden_states[-1][0, -1])


def test_seconds_of_the_references_own_forward(case: Case) -> None:
    assert all(item["reference_s"] > 0 for item in case.result["llama separate"])
    assert all(item["reference_s"] == 0 for item in case.result["llama shared"])


# ── preference ──


@torch.no_grad()
def plain_scores(folder: Path) -> Tensor:
    """(8,) as reward models are published: template, its BOS taken off, tokenizer with special tokens, one by one."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    scores = []
    for question, response in zip(QUESTIONS, RESPONSES, strict=True):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text.removeprefix(tokenizer.bos_token or ""), return_tensors="pt")["input_ids"]
        scores.append(model(ids).logits[0, 0].item() if ids.shape[1] <= MAX_LEN else -torch.inf)
    return torch.tensor(scores)


@pytest.mark.parametrize("name", ["skywork", "llama whole"])
def test_scores_are_those_of_a_plain_loop(case: Case, name: str) -> None:
    found = torch.cat([item["scores"] for item in case.result[name]])
    expected = plain_scores(case.reward_models[name.split()[0]])
    assert expected[:-1].std() > 0.1 and expected[-1] == -torch.inf
    assert_agree(found, expected)
    assert all(item["seconds"] > 0 for item in case.result[name])


def test_bf16_scores_are_fp32_numbers_near_them(case: Case) -> None:
    found = torch.cat([item["scores"] for item in case.result["llama bf16"]])
    assert case.result["llama bf16 held"][0]["dtypes"] == {"torch.bfloat16"} and found.dtype == torch.float32
    torch.testing.assert_close(found, plain_scores(case.reward_models["llama"]), rtol=0, atol=0.2)


def test_zero_3_shares_the_parameters_out_and_0_does_not(case: Case) -> None:
    for name, stage in (("skywork", 3), ("llama whole", 0)):
        for rank in case.result[f"{name} held"]:
            assert rank["stage"] == stage
            own = [own / whole for own, whole in zip(rank["own"], rank["whole"], strict=True)]
            # A share is rounded up to a whole number of values.
            assert all(share == 1 for share in own) if stage == 0 else all(0.5 <= share < 0.6 for share in own)


def test_the_head_is_the_checkpoints_and_nothing_is_normalised(case: Case) -> None:
    for name in ("skywork", "llama whole"):
        held = case.result[f"{name} held"][0]
        assert [parameter for parameter in held["names"] if not parameter.startswith("model.")] == ["score.weight"]
        assert held["dtypes"] == {"torch.float32"} and held["normalises"] is False
