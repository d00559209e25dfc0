"""The preference model: a sequence-classification reward model under its own tokenizer and chat template."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.upstream.actors import log_to_file, plain_class
from openrlhf_maestro.upstream.device import worker_device
from openrlhf_maestro.upstream.patches import prepare_process

prepare_process()

from openrlhf.trainer.ray.launcher import RewardModelActor  # noqa: E402
from openrlhf.utils import get_strategy  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from openrlhf_maestro.upstream.options import openrlhf_arguments  # noqa: E402

FAULT = float("-inf")


class PreferenceWorker(plain_class(RewardModelActor)):  # type: ignore[misc]
    """One rank of the preference model."""

    def __init__(self, world_size: int, rank: int, master_addr: str | None, master_port: int | None) -> None:
        log_to_file(f"preference_rank{rank}")
        super().__init__(world_size, rank, master_addr, master_port)

    def init_model_from_pretrained(self, config: MaestroConfig) -> None:
        self.config = config
        path = config.reward.model_name_or_path
        strategy = get_strategy(openrlhf_arguments(config, worker_device()))
        super().init_model_from_pretrained(strategy, path)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"the preference model {path} has no chat template: its tokenizer cannot show it a conversation."
            )
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def score(self, messages: list[list[dict[str, Any]]], responses: list[str]) -> Tensor:
        """(B,) fp32 scalar logits of (prompt, response), no system prompt added; -inf over reward.max_len."""
        conversations = [
            [*prompt, {"role": "assistant", "content": text}] for prompt, text in zip(messages, responses, strict=True)
        ]
        # The template writes the special tokens, a BOS included: the tokenizer must not add them again.
        texts = self.tokenizer.apply_chat_template(conversations, tokenize=False)
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        limit = self.config.reward.max_len
        sequences, attention_mask = _right_padded([row[:limit] for row in ids], self.tokenizer.pad_token_id)
        scores = self.forward(sequences, attention_mask).float()
        scores = scores.masked_fill(~scores.isfinite(), torch.nan)
        too_long = torch.tensor([len(row) > limit for row in ids])
        return scores.masked_fill(too_long, FAULT)


def _right_padded(rows: list[list[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """(B, T) token ids and attention mask."""
    longest = max(len(row) for row in rows)
    sequences = torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in rows])
    attention_mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return sequences, attention_mask
