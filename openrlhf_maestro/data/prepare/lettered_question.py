"""Questions that hold lettered options in their own text, and a reference that is the letter alone."""

from __future__ import annotations

import re

from openrlhf_maestro.data.prepare.choices import LETTERS, label

MARK = re.compile(r"^[ \t]*(?P<open>\()?(?P<letter>[A-Za-z])(?(open)\)|[.):])(?:[ \t]+|$)", re.MULTILINE)
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.):]?")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


def with_content(question: str, reference: str) -> str:
    """`reference` with the content of the option it names, as in "B" -> "B. inelastic", where the question lists it.

    It lists options where lines begin with A, B, ... in this order, each once: "(a)" and "(b)" alone are parts of a
    question. An option goes up to the next one or a blank line. Otherwise `reference` is returned.
    """
    match = _LETTER.fullmatch(reference)
    if match is None:
        return reference
    marks = list(MARK.finditer(question))
    letters = "".join(mark["letter"] for mark in marks)
    index = LETTERS.find(match[1].upper())
    if not LETTERS.startswith(letters.upper()) or not index < len(letters) or len(letters) < 2:
        return reference
    if len(letters) == 2 and letters.islower() and all(mark["open"] for mark in marks):
        return reference
    end = marks[index + 1].start() if index + 1 < len(marks) else len(question)
    content = _BLANK_LINE.split(question[marks[index].end() : end], 1)[0].strip()
    return label(index, content) if content else reference
