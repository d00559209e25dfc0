"""EmoBench in English: EA asks for the best action or response, EU for an emotion and its cause.

Two publications: JSON lines with one row a language, and (2024) nested JSON with both languages in a row, beside
permutations of the options and the results of models, which are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openrlhf_maestro.config.prepare import PrepareConfig
from openrlhf_maestro.data.prepare.choices import Choices, by_any, by_content
from openrlhf_maestro.data.prepare.recipe import EMPTY_PROMPT, Draft, Dropped, RawRow, Recipe, present
from openrlhf_maestro.errors import DataError

NOT_ENGLISH = "not English"


def recipe(config: PrepareConfig) -> Recipe:
    return Recipe(
        title="EmoBench",
        homepage="https://github.com/Sahandfer/EmoBench",
        licence="MIT",
        hub="SahandSab/EmoBench",
        hub_subsets=lambda name: True,
        convert=_convert,
        sizes={"train": 272, "validation": 0, "test": 128},
        accepts=_is_question_file,
    )


def _is_question_file(path: Path) -> bool:
    if path.suffix.lower() not in (".json", ".jsonl"):
        return False
    return path.stem in ("EA", "EU") or (path.stem == "data" and path.parent.name in ("EA", "EU"))


def _convert(row: RawRow) -> Draft:
    if row.text("language") not in ("", "en"):
        raise Dropped(NOT_ENGLISH)
    if "emotion_choices" in row.values or "Emotion" in row.values:
        return _understanding(row)
    if "choices" in row.values or "Choices" in row.values:
        return _application(row)
    columns = ", ".join(row.values) or "(none)"
    raise DataError(
        f"{row.where} has neither `choices` (EA) nor `emotion_choices` (EU); the columns are {columns}. "
        "Give --source the folder with EA.jsonl and EU.jsonl."
    )


def _application(row: RawRow) -> Draft:
    if "choices" in row.values:
        kind = row.text("question type")
        choices = by_content(_list(row, "choices"), row.text("label"), row.where)
    else:
        kind = _english(row, "Question")
        choices = by_any(_list(_in_english(row, "Choices"), "Choices"), row.label("Label"), row.where)
    subject, scenario = _subject_and_scenario(row)
    what = "response that {} could give" if kind.lower() == "response" else "thing that {} could do"
    question = f"What is the most effective {what.format(subject)} in this situation?"
    prompt = f"{scenario}\n\n{question}\n\nOptions:\n{choices.lettered}"
    category = row.text("category") if "category" in row.values else row.text("Problem")
    return _draft(row, "EA", prompt, choices.answer, scenario, category)


def _understanding(row: RawRow) -> Draft:
    if "emotion_choices" in row.values:
        emotion = by_content(_list(row, "emotion_choices"), row.text("emotion_label"), row.where)
        cause = by_content(_list(row, "cause_choices"), row.text("cause_label"), row.where)
        category = row.text("coarse_category")
    else:
        emotion, cause = _nested(row, "Emotion"), _nested(row, "Cause")
        category = row.text("Category")
    subject, scenario = _subject_and_scenario(row)
    question = f"Which emotion would {subject} feel in the end, and why? Choose one emotion and one cause."
    options = f"Emotions:\n{emotion.lettered}\n\nCauses:\n{cause.lettered}"
    reference = f"Emotion: {emotion.answer}\nCause: {cause.answer}"
    return _draft(row, "EU", f"{scenario}\n\n{question}\n\n{options}", reference, scenario, category)


def _draft(row: RawRow, task: str, prompt: str, reference: str, scenario: str, category: str) -> Draft:
    meta = present(task=task, source_id=row.text("qid"), category=category)
    return Draft(prompt, reference, "emobench", cluster=scenario, meta=meta)


def _subject_and_scenario(row: RawRow) -> tuple[str, str]:
    if "scenario" in row.values:
        subject, scenario = row.text("subject"), row.text("scenario")
    else:
        subject, scenario = _english(row, "Subject"), _english(row, "Scenario")
    if not subject or not scenario:
        raise Dropped(EMPTY_PROMPT)
    return subject, scenario


def _list(row: RawRow, column: str) -> list[Any]:
    value = row.values.get(column)
    if not isinstance(value, list):
        raise DataError(f"{row.where}: `{column}` is a {type(value).__name__}, not a list of options.")
    return value


# The nested publication.


def _english(row: RawRow, column: str) -> str:
    return _in_english(row, column).text(column)


def _in_english(row: RawRow, column: str) -> RawRow:
    value = row.values.get(column)
    return RawRow({column: value.get("en") if isinstance(value, Mapping) else value}, row.file, row.number)


def _nested(row: RawRow, column: str) -> Choices:
    value = row.values.get(column)
    if not isinstance(value, Mapping) or not {"Choices", "Label"} <= set(value):
        raise DataError(f"{row.where}: `{column}` has no Choices and Label.")
    inner = RawRow(value, row.file, row.number)
    return by_content(_list(_in_english(inner, "Choices"), "Choices"), _english(inner, "Label"), row.where)
