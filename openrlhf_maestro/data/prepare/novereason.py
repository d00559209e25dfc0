"""NOVEReason: a mixture that others prepared, with its splits; its known faults are mended, or the row is dropped.

`prompt` holds the question, its options and a request for the format. The request is taken off, because that is a
matter of data.input_template. What is mended in the options, and in the reference as it is in them, stands in
`option_lists`.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from openrlhf_maestro.config.prepare import PrepareConfig
from openrlhf_maestro.data.prepare.choices import ANSWER_ABSENT
from openrlhf_maestro.data.prepare.lettered_question import with_content
from openrlhf_maestro.data.prepare.option_lists import OptionList, mended, mended_reference
from openrlhf_maestro.data.prepare.recipe import Draft, Dropped, RawRow, Recipe, present
from openrlhf_maestro.data.prepare.source import split_named

_FORMAT = re.compile(r"\s*Answer the question and return in the following format:.*\Z", re.DOTALL)
_QUESTION = re.compile(r"\A\s*Question:\s*")
_EMPTY_ANSWER = re.compile(r"\(?[A-Za-z][.):]\s*(?:nan|NaN)?\s*")
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.):]?")


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
    prompt, lists = mended(_QUESTION.sub("", _FORMAT.sub("", row.text("prompt"))))
    return Draft(
        prompt.strip(),
        _reference(row.text("reference"), prompt, lists),
        row.text("source_dataset") or PurePath(row.file).name,
        split=split_named(row.text("split")) or row.split,
        meta=present(source_id=row.text("id"), subject=row.text("subject"), type=row.text("type")),
    )


def _reference(reference: str, prompt: str, lists: list[OptionList]) -> str:
    """`reference` as the mended prompt has its option; a letter alone gets the content."""
    if (letter := _LETTER.fullmatch(reference)) and len(lists) == 1:
        full = with_content(prompt, lists[0].renamed(letter[1]))
        if len(full) > 1:
            return full
    if _EMPTY_ANSWER.fullmatch(reference):
        raise Dropped(ANSWER_ABSENT)
    return mended_reference(reference, lists)
