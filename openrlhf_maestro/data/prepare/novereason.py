"""NOVEReason: a mixture that others prepared, with its splits; its known faults are mended, or the row is dropped.

`prompt` holds the question, its options and a request for the format. The request is taken off, because that is a
matter of data.input_template. So are options that say nan, and letters that stand twice (`A. A. Yes`).
"""

from __future__ import annotations

import re
from pathlib import PurePath

from openrlhf_maestro.config.prepare import PrepareConfig
from openrlhf_maestro.data.prepare.choices import ANSWER_ABSENT, LETTERS, without_label
from openrlhf_maestro.data.prepare.recipe import Draft, Dropped, RawRow, Recipe, present
from openrlhf_maestro.data.prepare.source import split_named

_FORMAT = re.compile(r"\s*Answer the question and return in the following format:.*\Z", re.DOTALL)
_QUESTION = re.compile(r"\A\s*Question:\s*")
_EMPTY_OPTION = re.compile(r"^[ \t]*\(?[A-Z][.):][ \t]*(?:nan|NaN)[ \t]*(?:\n|\Z)", re.MULTILINE)
_OPTION = re.compile(r"^([A-Z])([.:)]) (.+)$", re.MULTILINE)
_EMPTY_ANSWER = re.compile(r"\(?[A-Z][.):]\s*(?:nan|NaN)?\s*")


def recipe(config: PrepareConfig) -> Recipe:
    return Recipe(
        title="NOVEReason",
        homepage="https://huggingface.co/datasets/thinkwee/NOVEReason_2k",
        licence="Apache-2.0 for the mixture; the licences of its data sets hold, some of them non-commercial",
        hub="thinkwee/NOVEReason_2k",
        convert=_convert,
        columns=("prompt", "reference"),
        caution="NOVEReason has ToMBench in it, whose authors ask that it is never trained on.",
    )


def _convert(row: RawRow) -> Draft:
    prompt = _QUESTION.sub("", _FORMAT.sub("", row.text("prompt")))
    reference = row.text("reference")
    if _EMPTY_ANSWER.fullmatch(reference):
        raise Dropped(ANSWER_ABSENT)
    return Draft(
        _OPTION.sub(_once, _EMPTY_OPTION.sub("", prompt)).strip(),
        _OPTION.sub(_once, reference),
        row.text("source_dataset") or PurePath(row.file).name,
        split=split_named(row.text("split")) or row.split,
        meta=present(source_id=row.text("id"), subject=row.text("subject"), type=row.text("type")),
    )


def _once(option: re.Match[str]) -> str:
    letter, mark, text = option.groups()
    return f"{letter}{mark} {without_label(text, LETTERS.index(letter))}"
