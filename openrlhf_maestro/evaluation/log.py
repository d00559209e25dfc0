"""JSON lines that are kept one by one, so that a process that is killed loses no more than the line it was writing."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType, UnionType
from typing import Any

from openrlhf_maestro.config.writing import write_atomically
from openrlhf_maestro.errors import DataError, RunError

Row = dict[str, Any]

# What some readers take for the end of a line, Python's `str.splitlines` among them.
_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def read_rows(path: Path) -> list[Row]:
    """The whole lines of a file; a last line without its end is left out, as of a process that was killed.

    Raises DataError, with the line, where one is not a JSON object or the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    return _parsed(path, data[: data.rfind(b"\n") + 1])


def _parsed(path: Path, data: bytes) -> list[Row]:
    rows = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number} is damaged: it is no JSON object. Take the line out, or move the folder away."
            )
        rows.append(row)
    return rows


def check_fields(path: Path, rows: Iterable[Row], fields: Mapping[str, type | UnionType], what: str) -> None:
    """Raise DataError, with the line, where a field of the file's `rows` is absent or of another type than it says."""
    for number, row in enumerate(rows, 1):
        for name, kind in fields.items():
            if name not in row:
                problem = f"it has no `{name}`"
            elif not isinstance(row[name], kind):
                problem = f"its `{name}` cannot be {json.dumps(row[name])[:40]}"
            else:
                continue
            raise DataError(
                f"{path}, line {number} is not a {what}: {problem}. Take the line out, or move the folder away."
            )


class AppendLog:
    """Rows of a file, and further ones that are on disk when `append` returns. One process at a time."""

    def __init__(self, path: Path) -> None:
        """Opens the file, makes it where it is missing, and cuts off a torn last line.

        Raises:
            DataError: a line is damaged.
            RunError: another process is writing there, or the file cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise RunError(f"{path} is being written by another process: wait for it, or use another folder.") from None
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}.") from None
        try:
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            self.rows = _parsed(path, whole)
        except DataError:
            self.close()
            raise
        if len(whole) < len(data):
            os.ftruncate(self._file, len(whole))

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row and wait until it is on disk. Raises RunError where that fails."""
        try:
            _write_all(self._file, _line(row))
            os.fsync(self._file)
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}.") from None

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> AppendLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put these rows in place of the file's; a reader sees the old file or the whole new one."""
    try:
        write_atomically(path, map(_line, rows))
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}.") from None


def _line(row: Mapping[str, Any]) -> bytes:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    for character, escaped in _LINE_ENDS.items():
        text = text.replace(character, escaped)
    # A lone surrogate, as a judge may reply, has no UTF-8: what replaces it is JSON's own way to write one.
    return (text + "\n").encode("utf-8", "backslashreplace")


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
