"""The faults of lists of options inside a text: options that say nan or nothing, and letters that stand twice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from openrlhf_maestro.data.prepare.choices import ANSWER_ABSENT, LETTERS, TOO_FEW, without_label
from openrlhf_maestro.data.prepare.lettered_question import MARK
from openrlhf_maestro.data.prepare.recipe import Dropped

_ABSENT = ("nan", "NaN")
# A letter and its mark, once or more, where a reference begins, or after "Emotion: " and "Cause: " as in EmoBench.
_NAMED = re.compile(
    r"(?:\A|\b(?P<of>Emotion|Cause):\s*)\(?(?P<letter>[A-Za-z])[.):]\s+(?P<again>(?:\(?(?P=letter)[.):]\s+)*)"
)


@dataclass(frozen=True)
class OptionList:
    """`heading` is the line above the list, `letters` what each letter has become; None where it was taken out."""

    heading: str
    letters: Mapping[str, str | None]

    def renamed(self, letter: str) -> str:
        """Raises Dropped for an option that was taken out. A letter that is no option stays."""
        new = self.letters.get(letter.upper(), letter)
        if new is None:
            raise Dropped(ANSWER_ABSENT)
        return new if letter.isupper() else new.lower()


def mended(text: str) -> tuple[str, list[OptionList]]:
    """`text` without the faults, and its lists: two or more lines that begin with A, B, ... in this order.

    An empty option is taken out and the letters close up; a letter that stands twice, as in "A. A. Yes", stands once.
    Raises Dropped where fewer than two options are left.
    """
    marks = list(MARK.finditer(text))
    ends = dict(zip(marks, [*(mark.start() for mark in marks[1:]), len(text)], strict=False))
    lists = []
    edits: list[tuple[int, int, str]] = []
    for group in _groups(marks):
        letters: dict[str, str | None] = {}
        left = iter(LETTERS)
        for index, mark in enumerate(group):
            line, newline, rest = text[mark.end() : ends[mark]].partition("\n")
            line_end = mark.end() + len(line)
            bare = without_label(line, index)
            if bare.strip() in _ABSENT or not (bare + rest).strip():
                letters[LETTERS[index]] = None
                edits.append((mark.start(), line_end + len(newline), ""))
                continue
            letters[LETTERS[index]] = new = next(left)
            edits.append((mark.start("letter"), mark.end("letter"), new if mark["letter"].isupper() else new.lower()))
            edits.append((mark.end(), line_end, bare))
        if sum(new is not None for new in letters.values()) < 2:
            raise Dropped(TOO_FEW)
        lists.append(OptionList(text[: group[0].start()].rstrip().rpartition("\n")[2], letters))
    for start, end, new_text in reversed(edits):
        text = text[:start] + new_text + text[end:]
    return text, lists


def _groups(marks: list[re.Match[str]]) -> list[list[re.Match[str]]]:
    groups: list[list[re.Match[str]]] = []
    for mark in marks:
        letter = mark["letter"].upper()
        if letter == "A":
            groups.append([mark])
        elif groups and LETTERS[len(groups[-1]) :].startswith(letter):
            groups[-1].append(mark)
    return [group for group in groups if len(group) > 1]


def mended_reference(reference: str, lists: list[OptionList]) -> str:
    """`reference` with the letters that options have now, each once. Raises Dropped where its option was taken out."""

    def renamed(named: re.Match[str]) -> str:
        of = [one for one in lists if named["of"] is None or named["of"].casefold() in one.heading.casefold()]
        if len(of) != 1 or named["letter"].upper() not in of[0].letters:
            return named[0]
        start, end = (place - named.start() for place in named.span("letter"))
        label = named[0].removesuffix(named["again"])
        return label[:start] + of[0].renamed(named["letter"]) + label[end:]

    return _NAMED.sub(renamed, reference)
