"""The configuration of `maestro prepare`: a published data set to the rows of train, validation and test."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import PlainValidator, field_validator, model_validator

from openrlhf_maestro.config.fields import PAPER, Section, changed, option, section
from openrlhf_maestro.config.sections import listed

SPLITS = ("train", "validation", "test")

PreparedName = Literal[
    "natural_reasoning",
    "general_thoughts",
    "webinstruct",
    "ss_gen",
    "tombench",
    "emobench",
    "opus_books",
    "novereason",
    "custom",
]


class OpusBooksSection(Section):
    """What is particular to opus_books."""

    languages: str | None = option(
        None,
        "directions by commas, as in en-fr,fr-en: from English to French and back; null: every pair there is. A row "
        "goes in one direction only, drawn by the seed where both are named",
    )

    @field_validator("languages")
    @classmethod
    def _pairs(cls, value: str | None) -> str | None:
        for pair in listed(value or ""):
            languages = pair.split("-")
            if len(languages) != 2 or not all(languages) or languages[0] == languages[1]:
                raise ValueError(f"{pair} is no direction: write it as en-fr, from English to French")
        return value

    @property
    def directions(self) -> list[tuple[str, str]]:
        """(from, to); empty for every pair."""
        return [(pair.split("-")[0], pair.split("-")[1]) for pair in listed(self.languages or "")]


class CustomSection(Section):
    """The columns of a data set of your own (dataset: custom)."""

    input_key: str = option("prompt", "column of the question")
    label_key: str = option(
        "reference",
        "column of the reference answer; with choices: the text, the letter, the publication's own label or the number "
        "(from 0) of one",
    )
    choices_key: str | None = option(
        None, "column with the list of choices, or several columns by commas; null: the question is free form"
    )
    id_key: str | None = option(None, "column of the row's own id, each once; null: the id is made from the text")
    datasource: str = option("custom", "name of the data set in logs and reports", min_length=1)
    datasource_key: str | None = option(None, "column that names the data set of a row, instead of custom.datasource")
    split_key: str = option("split", "column that names the split of a row, where there is one")
    cluster_key: str | None = option(None, "column with what rows share, such as a passage; kept in meta.cluster")
    meta_keys: str | None = option(None, "further columns to keep in meta, by commas")
    licence: str = option("not stated", "licence, for the card")

    @property
    def choice_columns(self) -> list[str]:
        return listed(self.choices_key or "")

    @property
    def meta_columns(self) -> list[str]:
        return listed(self.meta_keys or "")


def _size(value: Any) -> int | float:
    """A number as it was written, with a point or without."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value} is no number of rows and no share")
    return value


Size = Annotated[int | float, PlainValidator(_size)]


def _any_share(sizes: Mapping[str, int | float]) -> bool:
    return any(isinstance(size, float) and size for size in sizes.values())


class PrepareConfig(Section):
    """Everything `maestro prepare` reads."""

    shorthands: ClassVar[dict[str, str]] = {
        "languages": "opus_books.languages",
        **{f"{name}": f"custom.{name}" for name in CustomSection.model_fields},
    }

    dataset: PreparedName = option(..., "which data set the source is")
    source: str | None = option(
        None, "file, folder with the files as published, or hub id; null: the data set's own hub id, where it has one"
    )
    subset: str | None = option(None, "configuration of a hub data set that has several; null: it has one")
    out: str | None = option(None, "folder to write; default data/<dataset>")
    overwrite: bool = option(False, "replace an earlier preparation in `out`")
    seed: int = option(42, "of the draw of rows and splits", ge=0)
    sizes: dict[str, Size] | None = option(
        None,
        "rows of each split, as in {train: 2000, test: 1000}, or shares of all rows, which have a point and sum to at "
        "most 1: {test: 1} is one row, {test: 1.0} all of them; default: as published. A source with more splits of "
        "its own than `train` keeps them, and at most so many rows of each",
        source=f"{PAPER}: the sizes of each data set",
    )
    keep_clusters: bool = option(
        False,
        "rows that share a passage (meta.cluster) stay in one split, whose size is then met as nearly as whole "
        "clusters allow; false: each row is drawn by itself",
    )
    drop_trivial: bool | None = option(
        None,
        "drop rows whose reference is one word or a bare number; default: for natural_reasoning, general_thoughts and "
        "webinstruct",
        source=f"{PAPER}",
    )
    opus_books: OpusBooksSection = section(OpusBooksSection)
    custom: CustomSection = section(CustomSection)

    @property
    def folder(self) -> Path:
        return Path(self.out or Path("data") / self.dataset).expanduser()

    @property
    def split_sizes(self) -> dict[str, Fraction | int] | None:
        """`sizes` in the order train, validation, test: shares are exact fractions, numbers of rows are ints."""
        if self.sizes is None:
            return None
        there = {name: self.sizes[name] for name in SPLITS if name in self.sizes}
        if not _any_share(there):
            return {name: int(size) for name, size in there.items()}
        return {name: Fraction(str(size)) for name, size in there.items()}

    @field_validator("sizes")
    @classmethod
    def _rows_or_shares(cls, value: dict[str, int | float] | None) -> dict[str, int | float] | None:
        if value is None:
            return None
        unknown = sorted(set(value) - set(SPLITS))
        if unknown:
            raise ValueError(f"there is no split {', '.join(unknown)}: splits are {', '.join(SPLITS)}")
        if min(value.values(), default=0) < 0 or not any(value.values()):
            raise ValueError("names no rows: each size is 0 or more, and one is above 0")
        if _any_share(value) and any(isinstance(size, int) and size for size in value.values()):
            raise ValueError(
                "mixes rows and shares: either numbers of rows, as in {train: 2000}, or shares with a point, as in "
                "{train: 0.8, test: 0.2}"
            )
        if _any_share(value) and sum(map(Fraction, map(str, value.values()))) > 1:
            raise ValueError("are shares, because they have a point, and sum to more than 1. Numbers of rows have none")
        return value

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> PrepareConfig:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        for name, part in (("opus_books", self.opus_books), ("custom", self.custom)):
            if self.dataset != name and changed(part):
                option_name = sorted(changed(part))[0]
                yield f"{name}.{option_name} has no effect with dataset: {self.dataset}. Leave it out."
        if self.dataset == "custom" and self.source is None:
            yield "`source` is not set: a data set of your own is a file, a folder or a hub id. Give --source."
