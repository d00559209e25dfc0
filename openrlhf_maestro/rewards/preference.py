"""The preference model: a sequence-classification reward model under its own tokenizer and chat template [B].

What it reads and how its logits become scores stands here once, for the Ray worker and for `LocalPreference`, which
loads the model with plain transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.rewards.groups import FAULT

# Architectures (as config.json has them) with one scalar head called `score`: transformers' and OpenRLHF's.
ARCHITECTURES = ("ForSequenceClassification", "RewardModel")

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Conversations:
    """B conversations, right-padded to T tokens; the model is asked for its logit at each one's last token."""

    token_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64, 1 on tokens
    too_long: Tensor  # (B,) bool; such a one is represented by its first token

    @property
    def last(self) -> Tensor:
        """(B,) columns of the last tokens."""
        return self.attention_mask.sum(-1) - 1

    def scores(self, logits: Tensor) -> Tensor:
        """(B,) logits -> (B,) fp32 scores: -inf, the response's fault, where too long; NaN, missing, if not finite."""
        logits = logits.float()
        return logits.masked_fill(~logits.isfinite(), torch.nan).masked_fill(self.too_long, FAULT)


class ConversationReader:
    """Writes (prompt, response) pairs the way a preference model was trained to read them."""

    def __init__(self, model_name_or_path: str, max_len: int, *, trust_remote_code: bool = False) -> None:
        """
        Args:
            model_name_or_path: Hugging Face name or folder.
            max_len: longest conversation, in the model's own tokens.
            trust_remote_code: let it run its own code. In a run's workers `run.trust_remote_code` decides.

        Raises:
            ConfigError: it cannot be loaded, is not a model that gives one score, or has no chat template.
        """
        from transformers import AutoConfig, AutoTokenizer

        with _loading(model_name_or_path):
            config = AutoConfig.from_pretrained(model_name_or_path, trust_remote_code=trust_remote_code)
        _check_gives_one_score(config, model_name_or_path)
        with _loading(model_name_or_path):
            self.tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, trust_remote_code=trust_remote_code)
        if self.tokenizer.chat_template is None:
            raise ConfigError(
                f"the preference model {model_name_or_path} has no chat template: its tokenizer cannot show it a "
                "conversation."
            )
        self.max_len = max_len
        self._bos = _expected_bos(self.tokenizer)
        # transformers reads the score at the last token that is not this one, even where the template ends with it.
        self._not_last = config.get_text_config().pad_token_id

    def read(self, messages: Sequence[Messages], responses: Sequence[str]) -> Conversations:
        """The conversations prompt + response, without a system prompt of ours."""
        conversations = [
            [*prompt, {"role": "assistant", "content": text}] for prompt, text in zip(messages, responses, strict=True)
        ]
        texts = self.tokenizer.apply_chat_template(conversations, tokenize=False)
        # Most templates write the special tokens, a BOS included: the tokenizer must not add them again.
        rows = [self._finished(row) for row in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        too_long = [len(row) > self.max_len for row in rows]
        kept = [torch.tensor(row[:1] if long else row) for row, long in zip(rows, too_long, strict=True)]
        return Conversations(
            token_ids=pad_sequence(kept, batch_first=True),
            attention_mask=pad_sequence([torch.ones_like(row) for row in kept], batch_first=True),
            too_long=torch.tensor(too_long),
        )

    def _finished(self, row: list[int]) -> list[int]:
        if self._bos is not None and row[:1] != [self._bos]:
            row = [self._bos, *row]
        end = len(row)
        while end > 1 and row[end - 1] == self._not_last:
            end -= 1
        return row[:end]


class LocalPreference:
    """A preference model in this process, loaded with plain transformers."""

    def __init__(
        self,
        model_name_or_path: str,
        *,
        max_len: int,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        dtype: Literal["auto", "bf16", "fp32"] = "auto",
        batch_size: int = 8,
        trust_remote_code: bool = False,
    ) -> None:
        """
        Args:
            model_name_or_path: Hugging Face name or folder of a sequence-classification model with one label.
            max_len: longest conversation, its tokens; a longer one is the response's fault.
            device: auto: cuda where there is one, else cpu.
            dtype: auto: bf16 on cuda, fp32 on a CPU.
            batch_size: conversations a forward.
            trust_remote_code: let it run its own code.

        Raises:
            ConfigError: it cannot be loaded, is not a model that gives one score, or has no chat template.
        """
        from transformers import AutoModelForSequenceClassification

        self.reader = ConversationReader(model_name_or_path, max_len, trust_remote_code=trust_remote_code)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "bf16" if device == "cuda" else "fp32"
        with _loading(model_name_or_path):
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                model_name_or_path,
                num_labels=1,
                dtype=torch.bfloat16 if dtype == "bf16" else torch.float32,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
        if loading["missing_keys"]:
            missing = ", ".join(sorted(loading["missing_keys"]))
            raise ConfigError(f"the preference model {model_name_or_path} lacks weights: {missing}.")
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        self.batch_size = batch_size

    @torch.no_grad()
    def score(self, messages: Sequence[Messages], responses: Sequence[str]) -> Tensor:
        """(B,) fp32 scalar logits of (prompt, response); -inf over max_len, NaN where the model gave no number."""
        scores = [torch.empty(0)]
        for start in range(0, len(responses), self.batch_size):
            part = slice(start, start + self.batch_size)
            batch = self.reader.read(messages[part], responses[part])
            scores.append(batch.scores(self._logits(batch)))
        return torch.cat(scores)

    def _logits(self, batch: Conversations) -> Tensor:
        """(B,) on the CPU. The model's own pooling would go by its padding token, which can be one of the text."""
        output = self.model.base_model(
            batch.token_ids.to(self.device), attention_mask=batch.attention_mask.to(self.device), use_cache=False
        )
        last = batch.last.to(self.device)
        hidden = output.last_hidden_state[torch.arange(len(last), device=self.device), last]
        return self.model.score(hidden).squeeze(-1).cpu()


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the preference model {name} cannot be loaded: {reason}") from error


def _check_gives_one_score(config: Any, name: str) -> None:
    architectures = config.architectures or []
    if not any(architecture.endswith(ARCHITECTURES) for architecture in architectures):
        raise ConfigError(
            f"the preference model {name} is of architecture {', '.join(architectures) or 'unknown'}: it needs a "
            "sequence-classification model, or its scores would come from a head of random weights."
        )
    classifier = architectures[0].endswith("ForSequenceClassification")
    if classifier and config.num_labels != 1:
        raise ConfigError(f"the preference model {name} has {config.num_labels} labels: it needs one, the score.")


def _expected_bos(tokenizer: Any) -> int | None:
    """The BOS token where this tokenizer begins a text with one."""
    first: int = tokenizer("a")["input_ids"][0]
    return first if first == tokenizer.bos_token_id else None
