"""Files that are whole at any time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write_atomically(path: Path, content: str | Iterable[bytes]) -> None:
    """Put this in place of a file, as UTF-8 where it is text, and leave nothing else behind where that fails.

    A reader, a full disk or a kill meets the old file or the whole new one. Raises OSError where it cannot be written.
    """
    # The process's number: two that write one page at a time do not get into each other's way.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines([content.encode()] if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
