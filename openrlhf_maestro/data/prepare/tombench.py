"""ToMBench in English: theory of mind as multiple choice, 2,860 questions on shared stories in twenty task files."""

from __future__ import annotations

from pathlib import Path, PurePath

from openrlhf_maestro.config.prepare import PrepareConfig
from openrlhf_maestro.data.prepare.choices import by_letter
from openrlhf_maestro.data.prepare.recipe import EMPTY_PROMPT, Draft, Dropped, RawRow, Recipe, present

ABILITY, ANSWER = "能力\nABILITY", "答案\nANSWER"
_OPTIONS = tuple(f"OPTION-{letter}" for letter in "ABCD")

CAUTION = (
    "The authors of ToMBench ask that it is never trained on. The training split is for comparison with the paper "
    "only: do not publish a model trained on it as one that ToMBench can measure."
)


def recipe(config: PrepareConfig) -> Recipe:
    return Recipe(
        title="ToMBench",
        homepage="https://github.com/zhchen18/ToMBench",
        licence="MIT; its authors ask that it is never trained on",
        convert=_convert,
        columns=("STORY", "QUESTION", *_OPTIONS[:2], ANSWER),
        sizes={"train": 1432, "validation": 571, "test": 857},
        accepts=_is_task_file,
        caution=CAUTION,
    )


def _is_task_file(path: Path) -> bool:
    return path.suffix.lower() == ".jsonl"


def _convert(row: RawRow) -> Draft:
    story, question = row.text("STORY"), row.text("QUESTION")
    if not question:
        raise Dropped(EMPTY_PROMPT)
    choices = by_letter([row.values.get(name) for name in _OPTIONS], row.text(ANSWER), row.where)
    parts = [*([story] if story else []), question, f"Options:\n{choices.lettered}"]
    meta = present(task=PurePath(row.file).name, ability=row.text(ABILITY))
    return Draft("\n\n".join(parts), choices.answer, "tombench", cluster=story or None, meta=meta)
