"""Questions that hold lettered options in their own text, and a reference that is the letter alone."""

from __future__ import annotations

import re

from openrlhf_maestro.data.prepare.choices import LETTERS, label

_OPTION = re.compile(r"^\s*(?:\(([A-Za-z])\)|([A-Za-z])[.):])\s+(\S.*?)\s*$", re.MULTILINE)
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.):]?")


def with_content(question: str, reference: str) -> str:
    """`reference` with the content of the option it names, as in "B" -> "B. inelastic", where the question lists it.

    It lists options where lines begin with A, B, ... in this order, each once. Otherwise `reference` is returned.
    """
    match = _LETTER.fullmatch(reference)
    if match is None:
        return reference
    options = {(first or second).upper(): text for first, second, text in _OPTION.findall(question)}
    letters = "".join(options)
    chosen = match[1].upper()
    if len(options) < 2 or not LETTERS.startswith(letters) or chosen not in options:
        return reference
    return label(LETTERS.index(chosen), options[chosen])
