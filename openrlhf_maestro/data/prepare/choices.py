"""Multiple choice as free form: the options in the prompt, letter and content of the right one in the reference."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf_maestro.data.prepare.recipe import Dropped, plain_text
from openrlhf_maestro.errors import DataError

LETTERS = string.ascii_uppercase
NO_SUCH_OPTION = "label is none of the options"
ANSWER_ABSENT = "the right option is empty"
TOO_FEW = "fewer than two options"
TOO_MANY = "more than 26 options"
AMBIGUOUS = "label names several options"

_LETTER = re.compile(r"\(?([A-Za-z])\)?[\s.):]*")
_NUMBER = re.compile(r"\d{1,2}")


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
    return _chosen(_cleaned(values, where), _place_of_letter(answer))


def by_content(values: Sequence[Any], answer: str, where: str) -> Choices:
    """Options of which `answer` repeats one."""
    options = _cleaned(values, where)
    return _only(options, _places_of_content(options, answer))


def by_any(values: Sequence[Any], answer: str | int, where: str) -> Choices:
    """Options of which `answer` names one: a number its place from 0, a text its content, its letter or that place.

    A text that can be read in two ways which do not name the same option, as "1" of 2, 3, 1, 12, is ambiguous.
    """
    options = _cleaned(values, where)
    if isinstance(answer, int):
        return _chosen(options, answer)
    places = {*_places_of_content(options, answer), _place_of_letter(answer)}
    if _NUMBER.fullmatch(answer.strip()):
        places.add(int(answer))
    return _only(options, [place for place in places if 0 <= place < len(options)])


def by_label(values: Sequence[Any], labels: Sequence[Any], answer: str | int, where: str) -> Choices:
    """Options with labels of the publication's own, of which `answer` names one; else as `by_any` has it.

    Where labels are numbers, a number is never a place.
    """
    if len(values) != len(labels):
        raise DataError(f"{where} has {len(values)} choices and {len(labels)} labels.")
    names = [plain_text(value, f"{where}: label {number}").casefold() for number, value in enumerate(labels, 1)]
    options = _cleaned(values, where)
    if places := [place for place, name in enumerate(names) if name and name == str(answer).strip().casefold()]:
        return _only(options, places)
    if not any(_NUMBER.fullmatch(name) for name in names):
        return by_any(values, answer, where)
    return by_content(values, answer, where) if isinstance(answer, str) else _only(options, [])


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
    """Each option in its place, empty where it is absent; without its own letter where all of them have theirs."""
    if len(values) > len(LETTERS):
        raise Dropped(TOO_MANY)
    texts = [plain_text(value, f"{where}: option {LETTERS[index]}") for index, value in enumerate(values)]
    bare = [plain_text(without_label(text, index), where) for index, text in enumerate(texts)]
    if all(other != text for text, other in zip(texts, bare, strict=True) if text):
        return bare
    return [text if other else "" for text, other in zip(texts, bare, strict=True)]


def _place_of_letter(answer: str) -> int:
    """-1 where `answer` is no letter."""
    match = _LETTER.fullmatch(answer.strip())
    return LETTERS.find(match[1].upper()) if match else -1


def _places_of_content(options: Sequence[str], answer: str) -> list[int]:
    return [index for index, option in enumerate(options) if option and _same(option, answer, index)]


def _only(options: Sequence[str], places: Sequence[int]) -> Choices:
    if len(places) > 1:
        raise Dropped(AMBIGUOUS)
    return _chosen(options, places[0] if places else -1)


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
    possible = (answer, without_label(answer.strip(), index))
    return " ".join(option.split()).casefold() in (" ".join(text.split()).casefold() for text in possible)
