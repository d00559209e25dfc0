"""What a judge is asked, after the paper's Figures 5-7; the wording is ours.

Each prompt states a criterion and how it decides: on one answer (`single`), or between two (`pair`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from openrlhf_maestro.errors import ConfigError


@dataclass(frozen=True)
class Instructions:
    """One prompt: its name for the files, with a digest where it is one's own, and its text for one answer and two."""

    name: str
    single: str
    pair: str


_STRICT = """\
You are a strict examiner. You are given a question, its reference answer and the answer of a candidate. Take the \
reference answer for the truth, even where you would have answered otherwise. Compare meaning, not wording."""
_STRICT_SINGLE = """
The answer is True if it says everything that is essential in the reference answer, contradicts it nowhere and settles \
on one final answer. It is False if an essential point, a number, a name, a unit or a choice is missing or differs, if \
it hedges between several answers, or if it leaves the question open. Where you are in doubt it is False."""

_LENIENT = """\
You are a fair and generous examiner. You are given a question, its reference answer and the answer of a candidate. \
The reference answer is one good answer; others may be as good."""
_LENIENT_SINGLE = """
The answer is True if its main point agrees with that of the reference answer. Other words, another order, further \
detail, and small omissions that leave the main point as it is do no harm. It is False if the main point differs, is \
missing, or is contradicted elsewhere in the answer."""

_CREATIVE = """\
You are the editor of a literary magazine. You are given a writing task, a reference text that fulfils it and the text \
of a candidate. The candidate need not resemble the reference text in plot, people or style: it only shows the quality \
that is expected."""
_CREATIVE_SINGLE = """
The text is True if it does what the task asks, in every part of it, is complete, holds together from beginning to \
end, and is at least as well written as the reference text. It is False if it misses part of the task, breaks off, \
repeats itself, contradicts itself, is in another language or form than was asked for, or is clearly the weaker one."""

_PAIR = """
Two candidates have answered. Decide which answer is the better one: {standard}. The order in which they are shown \
means nothing, and neither does their length."""
_STRICT_STANDARD = "the one with fewer errors against the reference answer, then the one that leaves out less of it"
_LENIENT_STANDARD = "the one whose main point agrees better with the reference answer, then the one that helps more"
_CREATIVE_STANDARD = "the one that fulfils the task more completely, holds together better and is better written"


def _instructions(name: str, opening: str, single: str, standard: str) -> Instructions:
    return Instructions(name, opening + single, opening + _PAIR.format(standard=standard))


BUILT_IN = {
    found.name: found
    for found in (
        _instructions("strict", _STRICT, _STRICT_SINGLE, _STRICT_STANDARD),
        _instructions("lenient", _LENIENT, _LENIENT_SINGLE, _LENIENT_STANDARD),
        _instructions("creative", _CREATIVE, _CREATIVE_SINGLE, _CREATIVE_STANDARD),
    )
}


def load_instructions(name: str) -> Instructions:
    """A prompt by its name, or the text of a file of one's own, which then serves for one answer as for two.

    Raises:
        ConfigError: it is neither, or the file is empty.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(BUILT_IN)
        raise ConfigError(
            f"the judge's prompt: {name} is none of {known}, and no text file that can be read ({error})."
        ) from None
    if not text:
        raise ConfigError(f"the judge's prompt: the file {name} is empty.")
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Instructions(f"{Path(name).name}:{digest}", text, text)
