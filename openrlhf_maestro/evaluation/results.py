"""The verdicts of one evaluation on disk: `results.jsonl`, one row a response, in the order of the data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from openrlhf_maestro.errors import DataError
from openrlhf_maestro.evaluation.log import write_rows

RESULTS = "results.jsonl"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Result:
    """One judged response. Two evaluations are paired by `key`."""

    key: str  # the row's id and the sample's number, `<id>#<sample>`
    id: str
    sample: int  # from 0
    datasource: str
    cluster: str | None  # rows that belong together (one story of ToMBench); None: the row stands for itself
    right: bool | None
    score: float | None  # in [0, 1]
    votes: tuple[bool | None, ...] = ()
    problem: str | None = None


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write them as JSON lines; a reader sees the old file or the whole new one."""
    write_rows(path, map(asdict, results))


def read_results(path: Path) -> list[Result]:
    """Raises DataError, with the line, where the file is not there or is not what `write_results` wrote."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Give the folder of a finished evaluation.") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not the results of an evaluation: it is no UTF-8 text (byte {error.start})."
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            found.append(Result(**(row | {"votes": tuple(row["votes"])})))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}, line {number} is not a result of an evaluation: {error}") from None
    return found
