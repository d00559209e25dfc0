"""What an adapter is: how the rows of one published data set become prompts and references."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from openrlhf_maestro.errors import DataError

EMPTY_PROMPT = "empty prompt"
EMPTY_REFERENCE = "empty reference"

# What pandas writes where a value is absent. Nan is a name, and None can be an answer.
_ABSENT = ("", "nan", "NaN", "<NA>")


class Dropped(Exception):
    """Raised by a recipe for a row that cannot be used; its text is the reason in the card."""


@dataclass(frozen=True)
class RawRow:
    """One row as published. `file` is its path in the source without suffix, `split` what its file is a split of."""

    values: Mapping[str, Any]
    file: str
    number: int
    split: str | None = None

    @property
    def where(self) -> str:
        return f"{self.file}, row {self.number}"

    def text(self, column: str) -> str:
        """The text of a column without white space around it; empty where there is none.

        Raises DataError for a list or a mapping.
        """
        return plain_text(self.values.get(column), f"{self.where}: `{column}`")

    def label(self, column: str) -> str | int:
        """The same, but a number without a point stays one: it is the place of an option."""
        value = self.values.get(column)
        return value if isinstance(value, int) and not isinstance(value, bool) else self.text(column)


@dataclass(frozen=True)
class Draft:
    """A row on its way: what is asked, and what is known about the answer."""

    prompt: str
    reference: str
    datasource: str
    split: str | None = None  # of the publication
    cluster: str | None = None  # what rows that belong together share, such as a story
    id: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


def _any_file(path: Path) -> bool:
    return True


@dataclass(frozen=True)
class Recipe:
    """One data set: where it is from, how a row is read, how it is split."""

    title: str
    homepage: str
    licence: str
    convert: Callable[[RawRow], Draft]  # raises Dropped
    columns: tuple[str, ...] = ()  # that each file must have
    reads: tuple[str, ...] | None = None  # all columns that `convert` looks at; None: any
    hub: str | None = None
    hub_subsets: Callable[[str], bool] | None = None  # which configurations on the hub belong to it
    sizes: Mapping[str, int] | None = None  # as published; None: the source has its own splits
    pool: str | None = None  # where the source has splits, only this one is drawn from
    accepts: Callable[[Path], bool] = _any_file  # which files of a folder
    open_ended: bool = False  # several references of one prompt are all right
    drop_trivial: bool = False
    caution: str | None = None  # shown when a training split is made


def plain_text(value: Any, where: str) -> str:
    """`value` as a text: an absent one is empty, a number as one writes it. Raises DataError for anything else."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool | int | float):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not isinstance(value, str):
        raise DataError(f"{where} is a {type(value).__name__} ({str(value)[:40]}), not a text.")
    text = _writable(value, where).replace("\r\n", "\n").strip()
    return "" if text in _ABSENT else text


def meta_value(value: Any, where: str) -> Any:
    """`value` as JSON holds it: dates in ISO 8601, decimals as texts, None for NaN.

    Raises DataError for what JSON has no form for.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return _writable(value, where)
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal | timedelta | UUID):
        return str(value)
    if isinstance(value, Mapping):
        return {_writable(str(name), where): meta_value(part, where) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [meta_value(part, where) for part in value]
    raise DataError(f"{where} is a {type(value).__name__} ({str(value)[:40]}), which JSON cannot hold. Leave it out.")


def _writable(text: str, where: str) -> str:
    """`text`; raises DataError where UTF-8 cannot hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} has half a character (\\u{ord(text[error.start]):04x}) at place {error.start + 1}, which UTF-8 "
            "cannot hold. Mend that row in the source."
        ) from None
    return text


def present(**values: Any) -> dict[str, Any]:
    """The values that are there: for `meta`."""
    return {name: value for name, value in values.items() if value not in ("", None)}
