"""How rows become prompts: shared by training and `maestro evaluate`."""

from __future__ import annotations

from pydantic import field_validator

from openrlhf_maestro.config.fields import OPENRLHF, Section, option

# The bundled prompt templates: data/templates/<name>.txt.
TEMPLATES = ("plain", "reasoning", "direct")


class PromptSection(Section):
    """Columns of the rows, and how their prompts are shown to the model."""

    input_key: str = option("prompt", "column of the prompt, a text or a list of chat messages")
    label_key: str | None = option("reference", "column of the reference answer; null: there is none")
    datasource_key: str = option(
        "datasource",
        "column that names the data set of a row; where absent it is `default`, or in a mixture the name of the source",
        source=OPENRLHF,
    )
    apply_chat_template: bool = option(True, "wrap prompts in the tokenizer's chat template")
    enable_thinking: bool | None = option(
        None, "handed to a chat template that knows it, as Qwen3's does; null: the template's own default"
    )
    input_template: str | None = option(
        None,
        "put around the prompt before the chat template: plain, reasoning or direct (docs/data.md), a text with {} for "
        "the prompt, or the path of a text file with {}",
        source=OPENRLHF,
    )
    truncate_prompts: bool = option(False, "cut prompts over the budget at their start instead of dropping the row")

    @field_validator("input_template")
    @classmethod
    def _template_has_a_place(cls, value: str | None) -> str | None:
        is_path = value is not None and any(mark in value for mark in "./\\~")
        if value is not None and "{}" not in value and value not in TEMPLATES and not is_path:
            raise ValueError(
                f"has no {{}} to put the prompt in, and is neither a file nor one of {', '.join(TEMPLATES)}"
            )
        return value
