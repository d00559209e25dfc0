"""Raw rows of a file, a folder as published, a folder that `datasets` saved, or the hub; never all of them in memory.

A source is read twice: once to check, compare and draw, once to write what was drawn. JSON lines and parquet are read
row by row; what comes from the hub is `datasets`' own memory-mapped copy on disk, with the columns that are needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_maestro.data.prepare.recipe import RawRow, Recipe
from openrlhf_maestro.data.readers import SUFFIXES, Row, check_hub_name, is_saved, parquet_columns, stream_file
from openrlhf_maestro.errors import ConfigError, DataError

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_SPLITS = {
    "train": ("train", "training", "sft"),
    "validation": ("validation", "val", "valid", "dev", "development"),
    "test": ("test", "testing"),
}


def split_named(name: str) -> str | None:
    """train, validation or test, where the last word of `name` says so: `refined_stories_dev` is validation."""
    last = re.split(r"[^a-z]+", _SHARD.sub("", name).lower())[-1]
    return next((split for split, words in _SPLITS.items() if last in words), None)


@dataclass(frozen=True)
class RawFile:
    """The rows of one file, or of one split on the hub. `name` has no suffix and no place outside the source."""

    name: str
    split: str | None
    numbered: Callable[[], Iterator[tuple[int, Row]]]  # from 1
    columns: tuple[str, ...] | None = None  # all that there are, where that is known before its rows are read

    def rows(self) -> Iterator[RawRow]:
        for number, values in self.numbered():
            yield RawRow(values, self.name, number, self.split)


def open_source(source: str | None, subset: str | None, recipe: Recipe) -> list[RawFile]:
    """The files of `source`, in the order of their names; the recipe's own hub id for None.

    Raises ConfigError where there is no source or subset to choose, DataError where it cannot be found or loaded.
    """
    if source is None and recipe.hub is None:
        raise ConfigError(
            f"`source` is not set: {recipe.title} is not on the hub. Give --source the folder with its files from "
            f"{recipe.homepage}."
        )
    name = source or str(recipe.hub)
    path = Path(name).expanduser()
    if subset is not None and path.exists():
        raise ConfigError(f"`subset` has no effect with a file or folder ({name}). Leave it out.")
    if path.is_file():
        return [_file(path, path.parent, recipe)]
    if path.is_dir():
        return _saved(path, recipe) if is_saved(path) else _folder(path, recipe)
    check_hub_name(name)
    return _hub(name, subset, recipe)


def _folder(path: Path, recipe: Recipe) -> list[RawFile]:
    readable = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    files = [_file(file, path, recipe) for file in readable if recipe.accepts(file)]
    if not files:
        others = f"; the {len(readable)} there are not of {recipe.title}" if readable else ""
        raise DataError(f"the folder {path} has no file that can be used ({', '.join(SUFFIXES)}){others}.")
    return files


def _file(path: Path, folder: Path, recipe: Recipe) -> RawFile:
    name = path.relative_to(folder).with_suffix("").as_posix()
    columns = parquet_columns(path) if path.suffix.lower() == ".parquet" else None
    return RawFile(name, split_named(path.stem), lambda: stream_file(path, recipe.reads), columns)


# The `datasets` library.


def _saved(path: Path, recipe: Recipe) -> list[RawFile]:
    import datasets

    try:
        return _of_dataset(path.name, datasets.load_from_disk(str(path)), recipe)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a data set that can be loaded: {error}.") from error


def _hub(name: str, subset: str | None, recipe: Recipe) -> list[RawFile]:
    import datasets

    try:
        subsets = _subsets(name, subset, datasets.get_dataset_config_names(name), recipe)
        found: list[RawFile] = []
        for each in subsets:
            prefix = f"{name}/{each}" if len(subsets) > 1 else name
            found += _of_dataset(prefix, datasets.load_dataset(name, each), recipe)
        return found
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{name} is no file or folder here and cannot be loaded from the hub: {reason}. Where there is no network, "
            "download it elsewhere and give --source its folder."
        ) from error


def _subsets(name: str, subset: str | None, there: Sequence[str], recipe: Recipe) -> list[str]:
    if subset is not None:
        if subset not in there:
            raise DataError(f"{name} on the hub has no configuration {subset}; it has {', '.join(there)}.")
        return [subset]
    if recipe.hub_subsets is not None:
        there = [each for each in there if recipe.hub_subsets(each)]
    elif len(there) > 1:
        raise ConfigError(f"{name} on the hub has several configurations ({', '.join(there)}): name one with --subset.")
    if not there:
        raise DataError(f"{name} on the hub has no configuration that was asked for.")
    return list(there)


def _of_dataset(name: str, loaded: Any, recipe: Recipe) -> list[RawFile]:
    splits = loaded.items() if isinstance(loaded, dict) else [(None, loaded)]
    return [
        RawFile(
            f"{name}/{split}" if split else name,
            split_named(split or ""),
            _numbered(dataset, recipe),
            tuple(dataset.column_names),
        )
        for split, dataset in splits
    ]


def _numbered(dataset: Any, recipe: Recipe) -> Callable[[], Iterator[tuple[int, Row]]]:
    if recipe.reads is not None:
        dataset = dataset.select_columns([name for name in dataset.column_names if name in recipe.reads])
    return lambda: iter(enumerate(dataset, 1))
