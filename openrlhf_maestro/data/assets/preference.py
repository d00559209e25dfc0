"""The tiny preference model: a Qwen3 sequence classifier trained on synthetic pairs by the Bradley-Terry loss."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForSequenceClassification

from openrlhf_maestro.data.assets.pairs import Pair, make_pair
from openrlhf_maestro.data.assets.recipes import PreferenceRecipe
from openrlhf_maestro.data.assets.tokenizer import train_tokenizer

METRICS_FILE = "preference_metrics.json"
_ASK, _REPLY, _STOP, _PAD = "[ASK]", "[REPLY]", "[STOP]", "[PAD]"

# Not the policy's template on purpose: a preference model from elsewhere never shares the policy's tokens.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- ('[ASK]' if message['role'] == 'user' else '[REPLY]') + message['content'] -}}"
    "{%- endfor -%}"
    "{{- '[REPLY]' if add_generation_prompt else '[STOP]' -}}"
)


def build_preference_model(recipe: PreferenceRecipe, rows_folder: Path, folder: Path) -> None:
    """Train on pairs from the training rows, measure on pairs from the validation rows, save model and tokenizer.

    Writes `preference_metrics.json`: `held_out_accuracy` (share of pairs whose chosen response scores higher),
    `held_out_accuracy_by_flaw`, `held_out_pairs`.
    """
    train_rows, held_out_rows = (_read(rows_folder / f"{split}.jsonl") for split in ("train", "validation"))
    rng = random.Random(recipe.seed)
    tokenizer = train_tokenizer(
        (text for row in train_rows for text in (row["prompt"], row["response"])),
        vocab_size=recipe.vocab_size,
        control_tokens=(_ASK, _REPLY, _STOP, _PAD),
        eos_token=_STOP,
        pad_token=_PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=recipe.max_position_embeddings,
    )
    tokenizer.padding_side = "right"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _new_model(recipe, tokenizer)
        steps = (
            [make_pair(row, rng, train_rows) for row in rng.sample(train_rows, recipe.pairs_per_step)]
            for _ in range(recipe.train_steps)
        )
        fit_bradley_terry(model, tokenizer, steps, recipe)
    held_out = [make_pair(rng.choice(held_out_rows), rng, held_out_rows) for _ in range(recipe.held_out_pairs)]
    metrics = pair_accuracy(model, tokenizer, held_out)
    (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fit_bradley_terry(
    model: Qwen3ForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    batches: Iterable[Sequence[Pair]],
    recipe: PreferenceRecipe,
) -> None:
    """Minimise -log sigmoid(score(chosen) - score(rejected)), mean over the pairs of a batch, one step a batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=recipe.train_steps)
    model.train()
    for pairs in batches:
        chosen, rejected = pair_scores(model, tokenizer, pairs)
        loss = -F.logsigmoid(chosen - rejected).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def pair_scores(
    model: Qwen3ForSequenceClassification, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the chosen and of the rejected responses, (B,) fp32 each."""
    dialogues = [
        [{"role": "user", "content": pair.prompt}, {"role": "assistant", "content": response}]
        for response_of in (lambda pair: pair.chosen, lambda pair: pair.rejected)
        for pair in pairs
        for response in [response_of(pair)]
    ]
    texts = [tokenizer.apply_chat_template(dialogue, tokenize=False) for dialogue in dialogues]
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].float()
    return scores[: len(pairs)], scores[len(pairs) :]


@torch.no_grad()
def pair_accuracy(
    model: Qwen3ForSequenceClassification, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]
) -> dict[str, object]:
    """Share of pairs whose chosen response scores higher: over all, and by the rejected response's flaw."""
    right: dict[str, list[bool]] = {}
    for start in range(0, len(pairs), 100):
        part = pairs[start : start + 100]
        chosen, rejected = pair_scores(model, tokenizer, part)
        for pair, is_right in zip(part, (chosen > rejected).tolist(), strict=True):
            right.setdefault(pair.flaw, []).append(is_right)
    return {
        "held_out_accuracy": sum(map(sum, right.values())) / len(pairs),
        "held_out_accuracy_by_flaw": {flaw: sum(hits) / len(hits) for flaw, hits in sorted(right.items())},
        "held_out_pairs": len(pairs),
    }


def _new_model(recipe: PreferenceRecipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForSequenceClassification:
    return Qwen3ForSequenceClassification(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.num_hidden_layers,
            num_attention_heads=recipe.num_attention_heads,
            num_key_value_heads=recipe.num_key_value_heads,
            head_dim=recipe.head_dim,
            max_position_embeddings=recipe.max_position_embeddings,
            num_labels=1,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
