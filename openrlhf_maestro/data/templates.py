"""Prompt templates: what is asked of the policy around a row's own prompt.

The bundled ones are text files in `templates/`, after the kinds of prompt in the paper's Figure 4, in our words:
- `plain`: the reasoning segment, then the answer segment, in the format that the `format` component checks.
- `reasoning`: the same, and brief reasoning step by step.
- `direct`: the answer segment alone, for a model that is not to reason.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from openrlhf_maestro.config.prompts import TEMPLATES
from openrlhf_maestro.errors import ConfigError

PLACE = "{}"

_FOLDER = Path(__file__).parent / "templates"


def fill_template(template: str | None, text: str) -> str:
    """`text` in the places of `template`; as it is where that is None.

    `template` is a bundled name, a text with {}, or the path of a text file with {}. Raises ConfigError for a file that
    cannot be read or has no {}.
    """
    if template is None:
        return text
    if PLACE not in template:
        template = _read(_FOLDER / f"{template}.txt" if template in TEMPLATES else Path(template).expanduser())
    return template.replace(PLACE, text)


@lru_cache
def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig").rstrip()
    except UnicodeDecodeError:
        raise ConfigError(f"the template {file} is not a UTF-8 text.") from None
    except OSError as error:
        raise ConfigError(
            f"the template {file} cannot be read ({error.strerror}). A template is a text with {{}} for the prompt, "
            f"the path of a text file with {{}}, or one of {', '.join(TEMPLATES)}."
        ) from None
    if PLACE not in text:
        raise ConfigError(f"the template {file} has no {{}} to put the text in.")
    return text
