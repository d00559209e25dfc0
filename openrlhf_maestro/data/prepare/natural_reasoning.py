"""Natural Reasoning: questions from web pages with the reference answer found there (1.1 M rows)."""

from __future__ import annotations

from openrlhf_maestro.config.prepare import PrepareConfig
from openrlhf_maestro.data.prepare.recipe import Draft, RawRow, Recipe

_COLUMNS = ("question", "reference_answer")


def recipe(config: PrepareConfig) -> Recipe:
    return Recipe(
        title="Natural Reasoning",
        homepage="https://huggingface.co/datasets/facebook/natural_reasoning",
        licence="CC-BY-NC-4.0",
        hub="facebook/natural_reasoning",
        convert=_convert,
        columns=_COLUMNS,
        reads=_COLUMNS,
        sizes={"train": 2000, "validation": 1000, "test": 1000},
        pool="train",
        drop_trivial=True,
    )


def _convert(row: RawRow) -> Draft:
    return Draft(row.text("question"), row.text("reference_answer"), "natural_reasoning")
