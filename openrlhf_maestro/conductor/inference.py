"""A Conductor's weights of any prompt and response, without a run: plain transformers, no Ray, no vLLM.

The texts become tokens as in a run: the prompt as data/rendering.py has it. The response's tokens follow, and the stop
token (the tokenizer's EOS) where the response ended by itself: that is the token whose state a run reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from openrlhf_maestro.conductor.conductor import Conductor
from openrlhf_maestro.conductor.context import context_module, read_context
from openrlhf_maestro.data.rendering import Chat, prompt_renderer
from openrlhf_maestro.errors import ConfigError, DataError

# Pairs are sorted by length among this many batches: little padding, and results still come in order, soon.
_WINDOW_BATCHES = 32
_FLAGS = {True: True, False: False, None: False, "true": True, "false": False, "": False}


class Pair(NamedTuple):
    """A prompt, and a response without its stop token."""

    prompt: str | Sequence[Mapping[str, str]]  # a text or chat messages
    response: str
    truncated: bool = False  # cut at a limit: no stop token follows


def pair_weights(
    *, conductor: str | Path, model: str | Path, pairs: Iterable[Sequence[Any]], **settings: Any
) -> list[dict[str, float]]:
    """The weights pi(.|h) of each (prompt, response) or (prompt, response, truncated), by component, in order.

    Args:
        conductor, model, settings: as of `PairWeights`.
        pairs: as `Pair` has them.

    Raises:
        ConfigError: as `PairWeights`.
        DataError: with the number of the pair, from 1.
    """
    checked = check_pairs(pairs)
    return list(PairWeights(conductor, model, **settings)(checked))


def check_pairs(pairs: Iterable[Sequence[Any]]) -> list[Pair]:
    """Raise DataError, with the row's number from 1, where a prompt, a response or a flag is none."""
    return [_checked(f"row {number}", *pair) for number, pair in enumerate(pairs, 1)]


class _Encoded(NamedTuple):
    token_ids: Tensor  # (T,) int32, prompt + response
    prompt_tokens: int


class PairWeights:
    """A Conductor and the policy it reads."""

    def __init__(
        self,
        conductor: str | Path,
        model: str | Path,
        *,
        batch_size: int = 8,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        dtype: Literal["auto", "bf16", "fp32"] = "auto",
        apply_chat_template: bool = True,
        enable_thinking: bool | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """
        Args:
            conductor: folder or hub name of a saved Conductor; it knows which layer it reads, and how it is pooled.
            model: folder or hub name of the policy, with its tokenizer.
            batch_size: pairs a forward.
            device: auto: cuda where there is one, else cpu.
            dtype: auto: bf16 on cuda, fp32 on a CPU.
            apply_chat_template: put texts into the chat template, as data.apply_chat_template of the run did.
            enable_thinking: as data.enable_thinking of the run.
            trust_remote_code: let the model run its own code.

        Raises:
            ConfigError: one of them cannot be loaded, they do not belong together, or the device is not there.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device: cuda was asked for, and torch finds none here. auto takes the CPU then.")
        if dtype == "auto":
            dtype = "bf16" if device == "cuda" else "fp32"
        with _loading("Conductor", conductor):
            self.conductor = Conductor.from_pretrained(str(conductor)).to(device)
        with _loading("model", model):
            config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code).get_text_config()
            self._tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        _check_fits(self.conductor, conductor, config, model)
        if self._tokenizer.eos_token_id is None:
            raise ConfigError(f"the model {model}: its tokenizer has no EOS token to end a response with.")
        if apply_chat_template and self._tokenizer.chat_template is None:
            raise ConfigError(
                f"the model {model}: its tokenizer has no chat template. If the run used none, switch it off: "
                "--no-apply_chat_template, in Python apply_chat_template=False."
            )
        self._render = prompt_renderer(self._tokenizer, Chat(apply_chat_template, enable_thinking))
        with _loading("model", model):
            loaded, found = AutoModelForCausalLM.from_pretrained(
                model,
                dtype=torch.bfloat16 if dtype == "bf16" else torch.float32,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
            context_module(loaded, self.conductor.context_layer)
        if found["missing_keys"]:
            raise ConfigError(f"the model {model} lacks weights: {', '.join(sorted(found['missing_keys']))}.")
        self._model = loaded.base_model.to(device).eval()  # no logits are wanted
        self._name = model
        self._max_tokens = getattr(config, "max_position_embeddings", None)
        self._batch_size = batch_size

    def __call__(self, pairs: Iterable[Pair]) -> Iterator[dict[str, float]]:
        """The weights of each pair, in order, as they are computed.

        Raises DataError, with the row's number from 1, for a pair that cannot be read; before the first forward.
        """
        rows = [self._encode(f"row {number}", pair) for number, pair in enumerate(pairs, 1)]
        names, size = self.conductor.reward_names, self._batch_size
        for first in range(0, len(rows), _WINDOW_BATCHES * size):
            window = rows[first : first + _WINDOW_BATCHES * size]
            order = sorted(range(len(window)), key=lambda index: len(window[index].token_ids))
            batches = [[window[index] for index in order[start : start + size]] for start in range(0, len(order), size)]
            probs = torch.cat([self._probs(batch) for batch in batches])
            for row in probs[torch.tensor(order).argsort()].tolist():
                yield dict(zip(names, row, strict=True))

    @torch.no_grad()
    def _probs(self, rows: Sequence[_Encoded]) -> Tensor:
        """(B, K) fp32 on the CPU."""
        device = self._model.device
        ids = [row.token_ids.long() for row in rows]
        attention_mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(device)
        prompts = torch.tensor([row.prompt_tokens for row in rows], device=device)
        places = torch.arange(attention_mask.shape[1], device=device)
        action_mask = ((places >= prompts[:, None]) & attention_mask.bool())[:, 1:]
        layer, pooling = self.conductor.context_layer, self.conductor.context_pooling
        with read_context(self._model, attention_mask, action_mask, layer=layer, pooling=pooling) as context:
            self._model(pad_sequence(ids, batch_first=True).to(device), attention_mask=attention_mask, use_cache=False)
        return self.conductor.probs(context.hidden).cpu()

    def _encode(self, where: str, pair: Pair) -> _Encoded:
        try:
            prompt = self._render(pair.prompt)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        response = self._tokens(pair.response)
        if not pair.truncated and response[-1:] != [self._tokenizer.eos_token_id]:
            response.append(self._tokenizer.eos_token_id)
        if not response:
            raise DataError(f"{where}: the response is empty and truncated, so that there is no token to read.")
        length = len(prompt) + len(response)
        if self._max_tokens is not None and length > self._max_tokens:
            raise DataError(f"{where}: {length} tokens of prompt and response; {self._name} reads {self._max_tokens}.")
        return _Encoded(torch.tensor(prompt + response, dtype=torch.int32), len(prompt))

    def _tokens(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return token_ids


@contextmanager
def _loading(what: str, name: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the {what} {name} cannot be loaded: {reason}") from error


def _check_fits(conductor: Conductor, folder: str | Path, config: Any, model: str | Path) -> None:
    if conductor.hidden_size != config.hidden_size:
        raise ConfigError(
            f"the Conductor {folder} was trained on a hidden size of {conductor.hidden_size}, and the model {model} "
            f"has {config.hidden_size}. Name the policy that the Conductor was trained with."
        )


def _checked(where: str, prompt: Any, response: Any, truncated: Any = False) -> Pair:
    if not isinstance(response, str):
        raise DataError(f"{where}: `response` is a {type(response).__name__}, not a text.")
    if not isinstance(prompt, str):
        if not isinstance(prompt, Sequence) or not prompt or not all(map(_is_message, prompt)):
            raise DataError(f"{where}: `prompt` is neither a text nor chat messages, each with `role` and `content`.")
    elif not prompt.strip():
        raise DataError(f"{where}: `prompt` is empty.")
    flag = truncated.lower() if isinstance(truncated, str) else truncated
    if not isinstance(flag, bool | str | None) or flag not in _FLAGS:
        raise DataError(f"{where}: `truncated` is {truncated!r}, neither true nor false.")
    return Pair(prompt, response, _FLAGS[flag])


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
