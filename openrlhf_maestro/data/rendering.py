"""The one place where a prompt becomes tokens: in training, in evaluation and in `maestro weights`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError

from openrlhf_maestro.errors import ConfigError, DataError

Renderer = Callable[[str | Sequence[Mapping[str, str]]], list[int]]


class ChatOptions(Protocol):
    """What a DataSection says about the chat template."""

    @property
    def apply_chat_template(self) -> bool: ...
    @property
    def enable_thinking(self) -> bool | None: ...


@dataclass(frozen=True)
class Chat:
    """The same without a DataSection."""

    apply_chat_template: bool = True
    enable_thinking: bool | None = None


def prompt_renderer(tokenizer: Any, data: ChatOptions) -> Renderer:
    """The function that turns a prompt, a text or chat messages, into token ids.

    With data.apply_chat_template messages go through the tokenizer's chat template with the opening of an answer, a
    text as one user message; data.enable_thinking, where it is not null, is handed to the template. Without it a text
    stands as it is. The token that begins a text (BOS) is there exactly once where the tokenizer adds one by itself,
    whether the chat template writes it or not, and not at all where the tokenizer has none.

    Raises ConfigError where there is no chat template, or it does not know enable_thinking. The function raises
    DataError for messages without a chat template, and for a prompt that the template refuses.
    """
    if data.apply_chat_template:
        _check_template(tokenizer, data)
    thinking = {} if data.enable_thinking is None else {"enable_thinking": data.enable_thinking}
    begins = _added_at_the_start(tokenizer)

    def render(prompt: str | Sequence[Mapping[str, str]]) -> list[int]:
        token_ids: list[int] = tokenizer(text_of(prompt), add_special_tokens=False)["input_ids"]
        return token_ids if token_ids[: len(begins)] == begins else begins + token_ids

    def text_of(prompt: str | Sequence[Mapping[str, str]]) -> str:
        if not data.apply_chat_template:
            if isinstance(prompt, str):
                return prompt
            raise DataError("`prompt` holds chat messages, which need the chat template.")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **thinking)
        except TemplateError as error:
            raise DataError(f"the model's chat template refuses the prompt: {error}.") from error
        return text

    return render


def _check_template(tokenizer: Any, data: ChatOptions) -> None:
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template. "
            "Set data.apply_chat_template: false, and data.input_template for a template of your own."
        )
    if data.enable_thinking is not None and "enable_thinking" not in str(tokenizer.chat_template):
        raise ConfigError(
            f"data.enable_thinking: the chat template of {tokenizer.name_or_path} does not know it, so that it would "
            "have no effect. Leave it null."
        )


def _added_at_the_start(tokenizer: Any) -> list[int]:
    """[BOS] where the tokenizer puts it before every text, else []."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []
