"""What the preference model reads, and its scores against a plain transformers loop over single pairs.

The loop is the one that reward models are published with: template, its BOS taken off, tokenizer with special tokens,
one conversation at a time. Tolerance 1e-4 in fp32; padding and batching change the order of summation, about 1e-6.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.rewards.preference import ConversationReader, Conversations, LocalPreference

DATA = Path(os.environ.get("MAESTRO_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")

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
BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"
SPECIAL = [BOS, EOT, "<|start_header_id|>", "<|end_header_id|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]

PAIRS = [
    ([{"role": "user", "content": "Name a colour."}], "Red"),
    ([{"role": "user", "content": "Why is the sky blue?"}], "Air scatters short waves more than long ones, so blue."),
    (
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": "2+2"},
        ],
        "4",
    ),
    (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a fruit."}],
        "An apple, or a pear.",
    ),
    ([{"role": "user", "content": "Name a colour."}], "R"),
]
MESSAGES, RESPONSES = [messages for messages, _ in PAIRS], [response for _, response in PAIRS]


def byte_tokenizer(
    *, template: str | None, bos: str | None = None, adds_bos: bool = False, pad: str | None = None
) -> Any:
    """A token a byte, and the special tokens of both families."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, pad_token=pad, chat_template=template)


QWEN: dict[str, Any] = {"template": QWEN_TEMPLATE, "pad": "<|endoftext|>"}
LLAMA: dict[str, Any] = {"template": LLAMA_TEMPLATE, "bos": BOS, "adds_bos": True}


def save(folder: Path, family: str = "qwen3", pad_token: str | None = "<|endoftext|>", **tokenizer: Any) -> str:
    """A tiny random reward model in transformers' own layout."""
    torch.manual_seed(0)
    spoken = byte_tokenizer(**(tokenizer or (QWEN if family == "qwen3" else LLAMA)))
    settings: dict[str, Any] = {
        "vocab_size": len(spoken),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,  # scores that differ
        "num_labels": 1,
        "pad_token_id": None if pad_token is None else spoken.convert_tokens_to_ids(pad_token),
    }
    if family == "qwen3":
        Qwen3ForSequenceClassification(Qwen3Config(**settings)).save_pretrained(folder)
    else:
        LlamaForSequenceClassification(LlamaConfig(**settings)).save_pretrained(folder)
    spoken.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def plain_loop(path: str) -> torch.Tensor:
    """(5,) scores of the pairs, one at a time."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    scores = []
    for messages, response in PAIRS:
        text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": response}], tokenize=False)
        if tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token):
            text = text[len(tokenizer.bos_token) :]
        scores.append(model(**tokenizer(text, return_tensors="pt")).logits[0, 0].item())
    return torch.tensor(scores)


def assert_agree(path: str, batch_size: int = 3) -> None:
    scores = LocalPreference(path, max_len=512, device="cpu", batch_size=batch_size).score(MESSAGES, RESPONSES)
    expected = plain_loop(path)
    assert expected.std() > 0.1  # or anything would agree
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)


# ── scores ──


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_scores_are_those_of_a_plain_loop(tmp_path: Path, family: str, batch_size: int) -> None:
    assert_agree(save(tmp_path, family), batch_size)


@pytest.mark.parametrize("pad_token", [None, EOT])
def test_a_padding_token_that_is_absent_or_ends_the_conversation(tmp_path: Path, pad_token: str | None) -> None:
    """transformers reads the score before a padding token, even where the template wrote it: so was it trained."""
    assert_agree(save(tmp_path, "llama", pad_token=pad_token))


def test_under_the_real_tokenizer(tmp_path: Path) -> None:
    """Qwen3's own vocabulary and template, which wraps an answer without reasoning in an empty reasoning segment."""
    real = DATA / "qwen3_06b"
    if not real.is_dir():
        pytest.skip("needs the Qwen3 tokenizer")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(real)
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.5,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert_agree(str(tmp_path))


def test_bf16_weights_and_fp32_scores(tmp_path: Path) -> None:
    model = LocalPreference(save(tmp_path), max_len=512, device="cpu", dtype="bf16")
    assert model.model.dtype == torch.bfloat16
    scores = model.score(MESSAGES, RESPONSES)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, plain_loop(str(tmp_path)), rtol=0, atol=0.1)


def test_nothing_to_score(tmp_path: Path) -> None:
    assert LocalPreference(save(tmp_path), max_len=512, device="cpu").score([], []).shape == (0,)


def test_too_long_is_the_responses_fault_and_nothing_is_cut(tmp_path: Path) -> None:
    path = save(tmp_path)
    lengths = [int(n) for n in ConversationReader(path, 512).read(MESSAGES, RESPONSES).attention_mask.sum(-1)]
    limit = sorted(lengths)[-2]
    scores = LocalPreference(path, max_len=limit, device="cpu").score(MESSAGES, RESPONSES)
    longest = lengths.index(max(lengths))
    assert scores[longest] == -torch.inf
    kept = [index for index in range(len(PAIRS)) if index != longest]
    torch.testing.assert_close(scores[kept], plain_loop(path)[kept], rtol=0, atol=1e-4)


def test_a_score_that_is_not_a_number_is_missing() -> None:
    batch = Conversations(torch.ones(3, 1), torch.ones(3, 1), torch.tensor([False, False, True]))
    scores = batch.scores(torch.tensor([torch.nan, torch.inf, torch.nan], dtype=torch.bfloat16))
    assert scores[:2].isnan().all() and scores[2] == -torch.inf and scores.dtype == torch.float32


# ── what is read ──


def read(tmp_path: Path, **tokenizer: Any) -> str:
    """What the model reads of the first pair, decoded."""
    reader = ConversationReader(save(tmp_path, "llama", None, **tokenizer), 512)
    batch = reader.read(MESSAGES[:1], RESPONSES[:1])
    return str(reader.tokenizer.decode(batch.token_ids[0]))


def test_the_conversation_and_no_system_prompt(tmp_path: Path) -> None:
    expected = "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\nRed<|im_end|>\n"
    assert read(tmp_path, **QWEN) == expected


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("writes_bos", [True, False])
def test_bos_once_where_template_or_tokenizer_has_one(tmp_path: Path, writes_bos: bool, adds_bos: bool) -> None:
    template = LLAMA_TEMPLATE if writes_bos else LLAMA_TEMPLATE.replace("{{- bos_token -}}", "")
    text = read(tmp_path, template=template, bos=BOS, adds_bos=adds_bos)
    assert text.count(BOS) == int(writes_bos or adds_bos)
    assert text.removeprefix(BOS).startswith("<|start_header_id|>user<|end_header_id|>\n\nName a colour.<|eot_id|>")


def test_right_padding(tmp_path: Path) -> None:
    batch = ConversationReader(save(tmp_path), 512).read(MESSAGES, RESPONSES)
    assert batch.token_ids.shape == batch.attention_mask.shape
    assert (batch.attention_mask.diff(dim=1) <= 0).all() and batch.attention_mask[:, 0].all()
    assert batch.last.tolist() == [int(row.sum()) - 1 for row in batch.attention_mask]


# ── models it refuses ──


def test_a_model_without_a_chat_template(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no chat template"):
        ConversationReader(save(tmp_path, "llama", template=None), 512)


def test_a_causal_language_model(tmp_path: Path) -> None:
    """OpenRLHF would put a head of random weights on it and say nothing."""
    config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="LlamaForCausalLM: it needs a sequence-classification model"):
        ConversationReader(str(tmp_path), 512)


def test_a_classifier_with_several_labels(tmp_path: Path) -> None:
    path = save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {"0": "bad", "1": "good"}
    config["label2id"] = {"bad": 0, "good": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="has 2 labels"):
        ConversationReader(path, 512)


@pytest.mark.parametrize("name", ["no/such/model", "./no/such/folder"])
def test_a_model_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=f"preference model {name} cannot be loaded: ") as raised:
        LocalPreference(name, max_len=512, device="cpu")
    assert "\n" not in str(raised.value)


def test_a_checkpoint_without_weights(tmp_path: Path) -> None:
    path = save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*model\.safetensors"):
        LocalPreference(path, max_len=512, device="cpu")


def test_code_of_a_model_runs_only_where_it_is_trusted_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "of_its_own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(
        "from transformers import Qwen3Config\n\n\nclass OwnConfig(Qwen3Config):\n    model_type = 'of_its_own'\n"
    )
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*trust_remote_code"):
        LocalPreference(path, max_len=512, device="cpu")
    assert asked == []
    assert ConversationReader(path, 512, trust_remote_code=True).max_len == 512


def test_a_checkpoint_without_its_head(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights: score\.weight"):
        LocalPreference(path, max_len=512, device="cpu")
