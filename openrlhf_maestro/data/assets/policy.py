"""The tiny policy: a randomly initialised Qwen3 and the tokenizer of the bundled tasks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from openrlhf_maestro.data.assets.recipes import PolicyRecipe
from openrlhf_maestro.data.assets.tokenizer import train_tokenizer

ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
END_TOKEN = "<|end|>"
PAD_TOKEN = "<|pad|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# The end of a turn is the end-of-sequence token, with nothing after it: what SFT trains is what sampling stops on.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def build_policy(recipe: PolicyRecipe, rows_folder: Path, folder: Path) -> None:
    """Train the tokenizer on the training rows, draw the weights, save both in Hugging Face layout (fp32)."""
    tokenizer = policy_tokenizer(recipe, rows_folder / "train.jsonl")
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.max_position_embeddings,
        initializer_range=recipe.initializer_range,
        tie_word_embeddings=recipe.tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def policy_tokenizer(recipe: PolicyRecipe, rows_file: Path) -> PreTrainedTokenizerFast:
    """The policy's tokenizer: merges learnt from prompts and responses, each tag one token."""
    tags = re.compile("|".join(map(re.escape, TAGS)))
    with rows_file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return train_tokenizer(
        # Tags are tokens of their own: no merge may be spent on their letters.
        (part for row in rows for part in (row["prompt"], *tags.split(row["response"]))),
        vocab_size=recipe.vocab_size,
        control_tokens=(*ROLE_TOKENS, END_TOKEN, PAD_TOKEN),
        text_tokens=TAGS,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        chat_template=CHAT_TEMPLATE,
        model_max_length=recipe.max_position_embeddings,
    )
