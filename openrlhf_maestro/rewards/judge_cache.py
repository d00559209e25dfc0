"""Scores of a judge that were paid for once, in an SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openrlhf_maestro.errors import ConfigError, MaestroError, RunError

# Longest wait for another process that is writing.
LOCK_S = 30.0


class ScoreCache:
    """Scores by key, kept on disk. Several processes may share one file; in one process it belongs to one thread."""

    def __init__(self, file: Path) -> None:
        """Makes nothing yet: the folder of a run may still be moved.

        Raises:
            ConfigError: the file is there, and is no such cache.
        """
        self.file = file
        self._connection: sqlite3.Connection | None = None
        if file.exists():
            with self._explained(ConfigError):
                self._open().close()

    def get(self, key: str) -> float | None:
        """The score of a key, None where there is none. Raises RunError where the file cannot be read."""
        row = self._execute("SELECT score FROM scores WHERE key = ?", key).fetchone()
        return None if row is None else row[0]

    def put(self, key: str, score: float) -> None:
        """Remember a score; the first that was stored for a key stays. Raises RunError where it cannot be written."""
        self._execute("INSERT OR IGNORE INTO scores VALUES (?, ?)", key, score)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _execute(self, statement: str, *values: str | float) -> sqlite3.Cursor:
        with self._explained(RunError):
            if self._connection is None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self._connection = self._open()
            return self._connection.execute(statement, values)

    def _open(self) -> sqlite3.Connection:
        # Without transactions: each statement is on disk, and its lock given back, when it returns.
        connection = sqlite3.connect(self.file, timeout=LOCK_S, isolation_level=None)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID"
        )
        return connection

    @contextmanager
    def _explained(self, kind: type[MaestroError]) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise kind(
                f"the judge's cache {self.file} cannot be used: {error}. Move the file away to begin a new one, or set "
                "the component's `cache` to another file or to off."
            ) from error
