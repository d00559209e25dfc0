"""The files of a prepared data set: a JSONL a split and the card, all of them or none."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openrlhf_maestro.config import yaml12
from openrlhf_maestro.config.prepare import SPLITS
from openrlhf_maestro.errors import UserError

CARD = "card.yaml"
_OURS = (CARD, *(f"{split}.jsonl" for split in SPLITS))


def check_folder(folder: Path, overwrite: bool, source: str | None) -> None:
    """Refuse a folder inside the source, and one with anything in it but a preparation that is to be replaced."""
    raw = Path(source).expanduser() if source else None
    if raw is not None and raw.is_dir() and folder.resolve().is_relative_to(raw.resolve()):
        raise UserError(
            f"`out`: {folder} lies in the source, {source}, and would be read as a part of it. Name another."
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"`out`: {folder} is a file. Name a folder.")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not there:
        return
    if not overwrite:
        raise UserError(
            f"`out`: {folder} has files already ({', '.join(there[:4])}). Name another, or add --overwrite."
        )
    foreign = [name for name in there if name not in _OURS]
    if foreign:
        raise UserError(
            f"`out`: {folder} holds more than a preparation ({', '.join(foreign[:4])}), and --overwrite replaces these "
            "alone. Name another folder, or move those files."
        )


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place when the block ends, and is gone when the block fails."""
    try:
        folder = folder.resolve()
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise UserError(f"`out`: {folder} cannot be made: {error.strerror}. Name another folder.") from error
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        _move(partial, folder)
    except OSError as error:
        raise UserError(f"`out`: {folder} cannot be written: {error.strerror}. Nothing in it was changed.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move(partial: Path, folder: Path) -> None:
    if not folder.is_dir():
        partial.rename(folder)
        return
    earlier = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
    os.replace(folder, earlier)
    try:
        partial.rename(folder)
    except OSError:
        os.replace(earlier, folder)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_rows(folder: Path, split: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write <split>.jsonl; returns what the card says of it."""
    data = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
    file = folder / f"{split}.jsonl"
    file.write_bytes(data)
    return {"file": file.name, "rows": len(rows), "sha256": hashlib.sha256(data).hexdigest()}


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    (folder / CARD).write_text(yaml12.dump(dict(card)), encoding="utf-8")
