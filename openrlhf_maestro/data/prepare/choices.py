"""Multiple choice as free form: the options in the prompt, letter and content of the right one in the reference."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf_maestro.data.prepare.recipe import Dropped, plain_text

LETTERS = string.ascii_uppercase
NO_SUCH_OPTION = "label is none of the options"
ANSWER_ABSENT = "the right option is empty"
TOO_FEW = "fewer than two options"
TOO_MANY = "more than 26 options"
AMBIGUOUS = "label names several options"

_LETTER = re.compile(r"\(?([A-Za-z])\)?[\s.):]*")


@dataclass(frozen=True)
class Choices:
    """The options that have a content, and the place of the right one among them."""

    options: tuple[str, ...]
    right: int

    @property
    def lettered(self) -> str:
        return "\n".join(label(index, option) for index, option in enumerate(self.options))

    @property
    def answer(self) -> str:
        """Letter and content."""
        return label(self.right, self.options[self.right])


def label(index: int, option: str) -> str:
    return f"{LETTERS[index]}. {option}"


def by_letter(values: Sequence[Any], answer: str, where: str) -> Choices:
    """Options of which `answer` names one by its letter, as in "C", "(c)" or "C. "."""
    options = _cleaned(values, where)
    match = _LETTER.fullmatch(answer.strip())
    index = LETTERS.find(match[1].upper()) if match else -1
    return _chosen(options, index)


def by_content(values: Sequence[Any], answer: str, where: str) -> Choices:
    """Options of which `answer` repeats one."""
    options = _cleaned(values, where)
    matches = [index for index, option in enumerate(options) if option and _same(option, answer, index)]
    if len(matches) > 1:
        raise Dropped(AMBIGUOUS)
    return _chosen(options, matches[0] if matches else -1)


def by_any(values: Sequence[Any], answer: str, where: str) -> Choices:
    """Options of which `answer` names one: by its content, else its letter, else its number from 0."""
    options = _cleaned(values, where)
    if any(option and _same(option, answer, index) for index, option in enumerate(options)):
        return by_content(values, answer, where)
    if answer.isdecimal():
        return _chosen(options, int(answer))
    return by_letter(values, answer, where)


def without_label(option: str, index: int) -> str:
    """`option` without its own letter in front ("A. A. Yes" -> "Yes"), as often as it stands there.

    A letter counts as a label only with a mark and a space after it: "A dog" and "A.M. or P.M." stay.
    """
    letter = LETTERS[index]
    own = re.compile(rf"(?:\({letter}\)|{letter}[.):])(?:\s+|$)", re.IGNORECASE)
    while match := own.match(option):
        option = option[match.end() :]
    return option


def _cleaned(values: Sequence[Any], where: str) -> list[str]:
    """Each option in its place, empty where it is absent."""
    if len(values) > len(LETTERS):
        raise Dropped(TOO_MANY)
    texts = [plain_text(value, f"{where}: option {LETTERS[index]}") for index, value in enumerate(values)]
    return [plain_text(without_label(text, index), where) for index, text in enumerate(texts)]


def _chosen(options: Sequence[str], index: int) -> Choices:
    if not 0 <= index < len(options):
        raise Dropped(NO_SUCH_OPTION)
    if not options[index]:
        raise Dropped(ANSWER_ABSENT)
    there = [place for place, option in enumerate(options) if option]
    if len(there) < 2:
        raise Dropped(TOO_FEW)
    return Choices(tuple(options[place] for place in there), there.index(index))


def _same(option: str, answer: str, index: int) -> bool:
    return " ".join(option.split()).casefold() == " ".join(without_label(answer.strip(), index).split()).casefold()
