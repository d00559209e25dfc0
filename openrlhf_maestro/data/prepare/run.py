"""One preparation from its source to its files: read and check, drop duplicates, draw, read again, write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from openrlhf_maestro.config.prepare import PrepareConfig
from openrlhf_maestro.data.prepare import (
    custom,
    emobench,
    general_thoughts,
    natural_reasoning,
    novereason,
    opus_books,
    ss_gen,
    tombench,
    webinstruct,
)
from openrlhf_maestro.data.prepare.card import make_card, notes
from openrlhf_maestro.data.prepare.drawing import Entry, are_shares, digest, distinct, draw, entry, normalised
from openrlhf_maestro.data.prepare.recipe import EMPTY_PROMPT, EMPTY_REFERENCE, Draft, Dropped, RawRow, Recipe
from openrlhf_maestro.data.prepare.source import RawFile, open_source
from openrlhf_maestro.data.prepare.trivial import is_trivial
from openrlhf_maestro.data.prepare.writing import check_folder, replacing, write_card, write_rows
from openrlhf_maestro.errors import ConfigError, DataError

TRIVIAL = "trivial reference"
_ROWS_TO_CHECK = 100

RECIPES: dict[str, Callable[[PrepareConfig], Recipe]] = {
    "natural_reasoning": natural_reasoning.recipe,
    "general_thoughts": general_thoughts.recipe,
    "webinstruct": webinstruct.recipe,
    "ss_gen": ss_gen.recipe,
    "tombench": tombench.recipe,
    "emobench": emobench.recipe,
    "opus_books": opus_books.recipe,
    "novereason": novereason.recipe,
    "custom": custom.recipe,
}


@dataclass(frozen=True)
class Prepared:
    """What was written, and where. `notes` are for the user's eyes; `card` is card.yaml."""

    folder: Path
    card: dict[str, Any]
    notes: list[str]


def prepare(config: PrepareConfig, on_row: Callable[[], None] = lambda: None) -> Prepared:
    """Prepare a data set as `config` says; `on_row` is called for each row of the source, twice in all.

    Every row is either kept or counted in card["dropped"] under its reason. Raises UserError, before anything is
    written, for an output folder with files, a source that cannot be read, a column that is missing, and when no row is
    left.
    """
    check_folder(config.folder, config.overwrite, config.source)
    recipe = RECIPES[config.dataset](config)
    files = open_source(config.source, config.subset, recipe)
    reading = _Reading(config, recipe, files, on_row)
    entries = reading.check()
    kept = distinct(entries, recipe.open_ended, reading.dropped)
    if config.sizes is not None and {one.split for one in kept} == {"train"}:
        kept = [one._replace(split=None) for one in kept]  # no evaluation set of others is touched
    sizes = _sizes(config, recipe, kept)
    drawn = draw(kept, sizes, config.seed, reading.dropped, config.keep_clusters)
    if not drawn:
        raise DataError(f"{reading.source}: none of {reading.read.total()} rows can be used ({reading.reasons}).")
    splits = {one.place: split for split, rows in drawn.items() for one in rows}
    drafts = dict(reading.again(set(splits)))
    rows = {split: [_row(config, drafts[one.place], one, split) for one in drawn[split]] for split in drawn}
    _check_ids(rows)
    card = make_card(config, recipe, reading.source, reading.read, reading.dropped, rows)
    with replacing(config.folder) as partial:
        card["splits"] = {split: write_rows(partial, split, rows[split]) for split in rows}
        write_card(partial, card)
    return Prepared(config.folder, card, notes(sizes, card))


class _Reading:
    """The two passes over the source, and what they count."""

    def __init__(
        self, config: PrepareConfig, recipe: Recipe, files: Sequence[RawFile], on_row: Callable[[], None]
    ) -> None:
        self.config = config
        self.recipe = recipe
        self.files = files
        self.on_row = on_row
        self.source = config.source or str(recipe.hub)
        self.read: Counter[str] = Counter()  # by file
        self.dropped: Counter[str] = Counter()  # by reason
        self._drop_trivial = recipe.drop_trivial if config.drop_trivial is None else config.drop_trivial

    @property
    def reasons(self) -> str:
        return "; ".join(f"{count} {reason}" for reason, count in self.dropped.most_common()) or "there are none"

    def check(self) -> list[Entry]:
        """The first pass: an entry for each usable row."""
        for file in self.files:
            self._check_columns(file)
        entries = []
        for index, file in enumerate(self.files):
            self.read.setdefault(file.name, 0)
            for row in file.rows():
                self.on_row()
                self.read[file.name] += 1
                try:
                    entries.append(entry(self._draft(row), index, row.number))
                except Dropped as reason:
                    self.dropped[str(reason)] += 1
        return entries

    def _check_columns(self, file: RawFile) -> None:
        """Refuse a file whose first rows all lack a column that is needed."""
        there = file.columns
        if there is None:
            first = islice(file.rows(), _ROWS_TO_CHECK)
            there = tuple(dict.fromkeys(name for row in first for name in row.values))
        missing = [name for name in self.recipe.columns if name not in there]
        if not there or not missing:
            return
        if self.config.dataset == "custom":
            mend = "Name its columns with --input_key, --label_key and the other options of `custom`."
        else:
            mend = f"Give --source the files as they are published ({self.recipe.homepage})."
        raise DataError(
            f"{self.source}, file {file.name} has no column {_quoted(missing)}; it has {_quoted(there)}. {mend}"
        )

    def again(self, places: set[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], Draft]]:
        """The second pass: the drafts at these places."""
        for index, file in enumerate(self.files):
            for row in file.rows():
                self.on_row()
                if (index, row.number) in places:
                    yield (index, row.number), self._draft(row)

    def _draft(self, row: RawRow) -> Draft:
        draft = self.recipe.convert(row)
        published = draft.split or row.split
        if not draft.prompt:
            raise Dropped(EMPTY_PROMPT)
        if not draft.reference:
            raise Dropped(EMPTY_REFERENCE)
        if self.recipe.pool is not None and published not in (None, self.recipe.pool):
            raise Dropped(f"published for {published}")
        if self._drop_trivial and is_trivial(draft.reference):
            raise Dropped(TRIVIAL)
        return draft


def _sizes(config: PrepareConfig, recipe: Recipe, kept: Sequence[Entry]) -> Mapping[str, Fraction | int] | None:
    """The sizes to draw. Raises for a source whose own splits and the options do not go together."""
    sizes = config.split_sizes or recipe.sizes
    unnamed = sum(one.split is None for one in kept)
    if config.keep_clusters and kept and (not unnamed or not any(one.cluster for one in kept)):
        why = "the source has splits of its own" if not unnamed else "no rows share a passage (custom.cluster_key)"
        raise ConfigError(f"`keep_clusters` has no effect: {why}. Leave it out.")
    if unnamed == len(kept):
        if sizes is None and kept:
            raise ConfigError(
                "`sizes` is not set, and the source has no splits of its own (files called train, validation and test, "
                "or a column that says so). Give --sizes '{train: 0.8, test: 0.2}'."
            )
        return sizes
    if unnamed:
        raise DataError(
            f"{unnamed} of {len(kept)} usable rows name no split, and the others do. Name one for each row."
        )
    if sizes is not None and are_shares(sizes):
        raise ConfigError(
            "`sizes` are shares, and the source has splits of its own. Give numbers of rows, as in {train: 2000, test: "
            "500}, or leave it out to keep every row."
        )
    return sizes


def _row(config: PrepareConfig, draft: Draft, one: Entry, split: str) -> dict[str, Any]:
    """A row as it is written."""
    meta = dict(draft.meta)
    if draft.cluster:
        meta["cluster"] = f"{config.dataset}-{digest(normalised(draft.cluster)).hex()[:12]}"
    return {
        "id": draft.id or f"{config.dataset}-{one.prompt.hex()[:16]}",
        "datasource": draft.datasource,
        "prompt": draft.prompt,
        "reference": draft.reference,
        "split": split,
        "meta": meta,
    }


def _check_ids(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    counts = Counter(row["id"] for written in rows.values() for row in written)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} ids are there more than once, the first {twice[0]}. Name another column with custom.id_key, "
            "or leave it out."
        )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
