"""A data set of one's own, by the names of its columns."""

from __future__ import annotations

import json
from typing import Any

from openrlhf_maestro.config.prepare import CustomSection, PrepareConfig
from openrlhf_maestro.data.prepare.choices import Choices, by_any, by_label
from openrlhf_maestro.data.prepare.recipe import (
    EMPTY_PROMPT,
    EMPTY_REFERENCE,
    Draft,
    Dropped,
    RawRow,
    Recipe,
    meta_value,
    present,
)
from openrlhf_maestro.data.prepare.source import split_named
from openrlhf_maestro.errors import DataError


def recipe(config: PrepareConfig) -> Recipe:
    custom = config.custom

    def convert(row: RawRow) -> Draft:
        question, reference = row.text(custom.input_key), row.text(custom.label_key)
        if not question:
            raise Dropped(EMPTY_PROMPT)
        if not reference:
            raise Dropped(EMPTY_REFERENCE)
        if custom.choice_columns:
            choices = _choices(row, custom)
            question, reference = f"{question}\n\nOptions:\n{choices.lettered}", choices.answer
        return Draft(
            question,
            reference,
            (row.text(custom.datasource_key) if custom.datasource_key else "") or custom.datasource,
            split=_split(row, custom.split_key),
            cluster=(row.text(custom.cluster_key) or None) if custom.cluster_key else None,
            id=row.text(custom.id_key) or None if custom.id_key else None,
            meta=present(**{name: _meta(row, name) for name in custom.meta_columns}),
        )

    named = (custom.datasource_key, custom.cluster_key, custom.id_key)
    columns = (custom.input_key, custom.label_key, *custom.choice_columns, *custom.meta_columns, *filter(None, named))
    return Recipe(
        title=custom.datasource,
        homepage="",
        licence=custom.licence,
        convert=convert,
        columns=columns,
        reads=(*columns, custom.split_key),
    )


def _split(row: RawRow, column: str) -> str | None:
    """The split that the row's column names, else its file's."""
    named = row.text(column)
    if not named:
        return row.split
    split = split_named(named)
    if split is None:
        raise DataError(
            f"{row.where}: `{column}` is {named[:40]}, which is none of train, validation and test. "
            "If that column says something else, name another with custom.split_key."
        )
    return split


def _meta(row: RawRow, column: str) -> Any:
    return meta_value(row.values.get(column), f"{row.where}: `{column}`")


def _choices(row: RawRow, custom: CustomSection) -> Choices:
    answer = row.label(custom.label_key)
    columns = custom.choice_columns
    value: Any = row.values.get(columns[0]) if len(columns) == 1 else [row.values.get(name) for name in columns]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise DataError(f"{row.where}: `{columns[0]}` is a text, and not a list in JSON.") from None
    labels = None
    if isinstance(value, dict) and isinstance(value.get("text"), list):  # {"text": [...], "label": [...]}
        value, labels = value["text"], value.get("label")
    if not isinstance(value, list):
        raise DataError(f"{row.where}: `{columns[0]}` is a {type(value).__name__}, not a list of choices.")
    if isinstance(labels, list):
        return by_label(value, labels, answer, row.where)
    return by_any(value, answer, row.where)
