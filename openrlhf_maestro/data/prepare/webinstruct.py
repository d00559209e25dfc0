"""WebInstruct-verified: exam questions from the web. Its own test split is left to those who evaluate on it."""

from __future__ import annotations

from openrlhf_maestro.config.prepare import PrepareConfig
from openrlhf_maestro.data.prepare.lettered_question import with_content
from openrlhf_maestro.data.prepare.recipe import Draft, RawRow, Recipe, present

_COLUMNS = ("question", "answer")


def recipe(config: PrepareConfig) -> Recipe:
    return Recipe(
        title="WebInstruct-verified",
        homepage="https://huggingface.co/datasets/TIGER-Lab/WebInstruct-verified",
        licence="Apache-2.0",
        hub="TIGER-Lab/WebInstruct-verified",
        convert=_convert,
        columns=_COLUMNS,
        reads=(*_COLUMNS, "answer_type", "category", "difficulty"),
        sizes={"train": 2000, "validation": 1000, "test": 1000},
        pool="train",
        drop_trivial=True,
    )


def _convert(row: RawRow) -> Draft:
    question = row.text("question")
    meta = {name: row.text(name) for name in ("answer_type", "category", "difficulty")}
    return Draft(question, with_content(question, row.text("answer")), "webinstruct", meta=present(**meta))
