"""GeneralThoughts: questions of many origins, each with the answers of several models; one row of each is kept."""

from __future__ import annotations

from openrlhf_maestro.config.prepare import PrepareConfig
from openrlhf_maestro.data.prepare.lettered_question import with_content
from openrlhf_maestro.data.prepare.recipe import Draft, RawRow, Recipe

_COLUMNS = ("question", "reference_answer")


def recipe(config: PrepareConfig) -> Recipe:
    return Recipe(
        title="GeneralThoughts",
        homepage="https://huggingface.co/datasets/RJT1990/GeneralThoughtArchive",
        licence="MIT; each question has a licence of its own in the column question_license",
        hub="RJT1990/GeneralThoughtArchive",
        convert=_convert,
        columns=_COLUMNS,
        reads=_COLUMNS,
        sizes={"train": 2000, "validation": 1000, "test": 1000},
        pool="train",
        drop_trivial=True,
    )


def _convert(row: RawRow) -> Draft:
    question = row.text("question")
    return Draft(question, with_content(question, row.text("reference_answer")), "general_thoughts")
