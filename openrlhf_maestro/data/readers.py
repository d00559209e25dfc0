"""Rows from JSONL, JSON, CSV and parquet files, folders of them, saved data sets and the Hugging Face hub.

Which rows belong to a split:
- Where a file has a `split` column, the rows whose value is the split.
- A file without one that was named directly, or is alone in its folder, is taken whole for every split.
- In a folder of several files, those whose name is the split: `train.jsonl`, `test-00000-of-00002.parquet`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_maestro.errors import DataError

SPLIT_COLUMN = "split"

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_HUB_NAME = re.compile(r"^[\w.-]+(?:/[\w.-]+)?$")
_SAVED = ("state.json", "dataset_dict.json")
_BATCH_ROWS = 1024

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """Rows of one source in their order, each with its number there, from 1."""

    name: str
    columns: tuple[str, ...]
    numbered: Sequence[tuple[int, Row]]


def read_source(source: str, split: str) -> list[Rows]:
    """The rows of `split` in `source`: a file, a folder or a name on the hub; one Rows a file.

    Raises DataError where there is no such source, it cannot be read, or it has no such split.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _choose_split(source, split, [_by_split(read_file(path), None)])
    if path.is_dir():
        return _choose_split(source, split, list(_folder(path)))
    check_hub_name(source)
    return [_from_hub(source, split)]


def check_hub_name(source: str) -> None:
    """Raise DataError where `source`, which is no file or folder here, is no name on the hub either."""
    if Path(source).suffix.lower() in _READERS or source.startswith((".", "/", "~")) or not _HUB_NAME.match(source):
        raise DataError(f"there is no file or folder {source}.")


def source_name(source: str, split: str) -> str:
    """What a source is called: the name of its file, folder or hub data set, without suffix and number of a shard.

    Where that is the split's name, as in webinstruct/train.jsonl, it is the folder's.
    """
    path = Path(os.path.abspath(Path(source).expanduser()))
    name = _SHARD.sub("", path.stem if path.suffix.lower() in _READERS else path.name)
    return path.parent.name if name == split else name


def read_file(path: Path) -> Rows:
    """Every row of one file. Raises DataError with the line or row that cannot be read."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is none of the formats that can be read: {', '.join(_READERS)}.")
    with _reading(path):
        return reader(path)


def stream_file(path: Path, columns: Collection[str] | None = None) -> Iterator[tuple[int, Row]]:
    """The same rows with their numbers, from JSON lines and parquet without holding the whole file.

    Of parquet only `columns` are read, those of them that there are.
    """
    with _reading(path):
        if path.suffix.lower() == ".jsonl":
            yield from _stream_jsonl(path)
        elif path.suffix.lower() == ".parquet":
            yield from _stream_parquet(path, columns)
        else:
            yield from read_file(path).numbered


def parquet_columns(path: Path) -> tuple[str, ...]:
    """The columns of a parquet file, without its rows."""
    with _reading(path), _open_parquet(path) as file:
        return tuple(file.schema_arrow.names)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def _choose_split(source: str, split: str, files: Sequence[Mapping[str | None, Rows]]) -> list[Rows]:
    chosen = [groups[key] for groups in files for key in (split, None) if key in groups]
    if not chosen:
        there = sorted({name for groups in files for name in groups if name is not None})
        raise DataError(f"{source} has no split `{split}`; it has {', '.join(there) or 'no rows at all'}.")
    return chosen


def _by_split(rows: Rows, file_split: str | None) -> dict[str | None, Rows]:
    """The rows of each split; under None those that serve every split."""
    if SPLIT_COLUMN not in rows.columns:
        return {file_split: rows}
    found: dict[str | None, list[tuple[int, Row]]] = {}
    for number, row in rows.numbered:
        value = row.get(SPLIT_COLUMN)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{rows.name}, row {number}: the column `{SPLIT_COLUMN}` names no split.")
        found.setdefault(value.strip(), []).append((number, row))
    return {split: Rows(rows.name, rows.columns, numbered) for split, numbered in found.items()}


def is_saved(path: Path) -> bool:
    """Whether the `datasets` library saved this folder."""
    return any((path / name).exists() for name in _SAVED)


def _folder(path: Path) -> Iterator[dict[str | None, Rows]]:
    if is_saved(path):
        yield _from_disk(path)
        return
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _READERS)
    if not files:
        raise DataError(f"the folder {path} holds no file that can be read ({', '.join(_READERS)}).")
    for file in files:
        yield _by_split(read_file(file), None if len(files) == 1 else _SHARD.sub("", file.stem))


# One reader a format.


def _read_jsonl(path: Path) -> Rows:
    return _rows(path, _stream_jsonl(path))


def _stream_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig") as lines:
        yield from _objects(path, (_parse_line(path, n, line) for n, line in enumerate(lines, 1) if line.strip()))


def _parse_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number} is not JSON: {error.msg} (column {error.colno}).") from None


def _read_json(path: Path) -> Rows:
    """A list of objects; or, as many tools write it, JSON lines under this suffix."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return _read_jsonl(path)
    try:
        return _rows(path, _objects(path, json.loads(text)))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno} is not JSON: {error.msg} (column {error.colno}).") from None


def _rows(path: Path, stream: Iterator[tuple[int, Row]]) -> Rows:
    numbered = list(stream)
    return Rows(str(path), tuple(dict.fromkeys(name for _, row in numbered for name in row)), numbered)


def _objects(path: Path, values: Iterable[Any]) -> Iterator[tuple[int, Row]]:
    for number, row in enumerate(values, 1):
        if not isinstance(row, dict):
            raise DataError(f'{path}, row {number} is not an object with named values, as in {{"prompt": ...}}.')
        yield number, row


def _read_csv(path: Path) -> Rows:
    # The csv module's limit on a cell is 128 KiB, for the whole process: it is put back.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            try:
                return _from_cells(path, reader)
            except csv.Error as error:
                raise DataError(f"{path}, at line {reader.line_num} is not valid CSV: {error}.") from None
    finally:
        csv.field_size_limit(limit)


def _from_cells(path: Path, cells: Iterator[list[str]]) -> Rows:
    header = next(cells, [])
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise DataError(f"{path} has two columns called {', '.join(sorted(twice))}.")
    numbered: list[tuple[int, Row]] = []
    for values in filter(None, cells):
        number = len(numbered) + 1
        if len(values) != len(header):
            raise DataError(f"{path}, row {number} has {len(values)} cells; the header has {len(header)}.")
        numbered.append((number, dict(zip(header, values, strict=True))))
    return Rows(str(path), tuple(header), numbered)


def _read_parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not valid parquet: {error}.") from None
    return Rows(str(path), tuple(table.column_names), list(enumerate(table.to_pylist(), 1)))


def _stream_parquet(path: Path, columns: Collection[str] | None) -> Iterator[tuple[int, Row]]:
    with _open_parquet(path) as file:
        names = [name for name in file.schema_arrow.names if columns is None or name in columns]
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=names)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not valid parquet: {error}.") from None


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)


# The `datasets` library, for what it wrote itself and for the hub.


def _from_disk(path: Path) -> dict[str | None, Rows]:
    datasets = _datasets(str(path))
    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a data set that can be loaded: {error}.") from error
    if isinstance(saved, datasets.DatasetDict):
        return {split: _from_dataset(f"{path}, split {split}", dataset) for split, dataset in saved.items()}
    return _by_split(_from_dataset(str(path), saved), None)


def _from_hub(name: str, split: str) -> Rows:
    datasets = _datasets(name)
    try:
        there = datasets.get_dataset_split_names(name)
        if split not in there:
            raise DataError(f"{name} on the hub has no split `{split}`; it has {', '.join(there)}.")
        return _from_dataset(name, datasets.load_dataset(name, split=split))
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name} is no file or folder here and cannot be loaded from the hub: {reason}") from error


def _from_dataset(name: str, dataset: Any) -> Rows:
    return Rows(name, tuple(dataset.column_names), list(enumerate(dataset, 1)))


def _datasets(source: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(f"{source} needs the `datasets` package: pip install datasets.") from None
    return datasets
