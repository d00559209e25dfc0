"""Rows of `rollouts/` and `evaluations/` as typed values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# What a parquet file that is damaged, or of another kind, raises when it is read.
UNREADABLE = (pa.ArrowInvalid, OSError, KeyError)


@dataclass(frozen=True)
class Rollout:
    """One response of `rollouts/step_N.parquet`, with each reward component by name."""

    step: int
    prompt: str
    response: str
    reference: str | None
    datasource: str
    group: int
    action: str | None
    scalar_reward: float
    advantage: float
    truncated: bool
    response_tokens: int
    raw: dict[str, float]
    norm: dict[str, float]
    weight: dict[str, float]


@dataclass(frozen=True)
class Evaluated:
    """One held-out response of `evaluations/step_N.parquet`. `right`: None where the verdict is a score alone."""

    step: int
    id: str
    datasource: str
    prompt: str
    response: str
    reference: str | None
    right: bool | None
    score: float  # NaN where there is none


def count_rows(path: Path) -> int:
    """Rows of a parquet file, from its footer. Raises one of UNREADABLE."""
    return int(pq.read_metadata(path).num_rows)


def read_rollouts(path: Path, most: int | None = None) -> list[Rollout]:
    """The responses of one step in file order; with `most`, an even choice of whole groups of about that many rows.

    Raises one of UNREADABLE.
    """
    table = pq.read_table(path)
    if most is not None and table.num_rows > most:
        groups = list(dict.fromkeys(table["group"].to_pylist()))
        kept = evenly(groups, max(1, most * len(groups) // table.num_rows))
        table = table.filter(pc.is_in(table["group"], value_set=pa.array(kept)))
    return [_rollout(row) for row in table.to_pylist()]


def read_evaluated(path: Path) -> list[Evaluated]:
    """The held-out responses of one evaluation in file order. Raises one of UNREADABLE."""
    return [_evaluated(row) for row in pq.read_table(path).to_pylist()]


def evenly(items: list[Any], count: int) -> list[Any]:
    """`count` of them at even distances, the first and the last among them; all where there are no more."""
    if count >= len(items):
        return items
    if count == 1:
        return items[-1:]
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def _rollout(row: dict[str, Any]) -> Rollout:
    """Raises KeyError where a column of the format is missing."""
    components = [column[len("raw_") :] for column in row if column.startswith("raw_")]
    return Rollout(
        step=row["step"],
        prompt=row["prompt"],
        response=row["response"],
        reference=row["reference"],
        datasource=row["datasource"],
        group=row["group"],
        action=_action_name(row["action"], components),
        scalar_reward=number_or_nan(row["scalar_reward"]),
        advantage=number_or_nan(row["advantage"]),
        truncated=bool(row["truncated"]),
        response_tokens=row["response_tokens"],
        raw={name: _raw(row[f"raw_{name}"]) for name in components},
        norm={name: number_or_nan(row[f"norm_{name}"]) for name in components},
        weight={name: number_or_nan(row[f"weight_{name}"]) for name in components},
    )


def _action_name(action: str | int | None, components: list[str]) -> str | None:
    """The emphasised component, logged by name or by its place among the columns; -1 or null: none was drawn."""
    if isinstance(action, int):
        return components[action] if 0 <= action < len(components) else None
    return action or None


def _raw(value: float | None) -> float:
    """A raw reward: -inf (the response's fault) is kept; null is the same as NaN (missing)."""
    return math.nan if value is None else float(value)


def _evaluated(row: dict[str, Any]) -> Evaluated:
    """Raises KeyError where a column of the format is missing."""
    return Evaluated(
        step=row["step"],
        id=str(row["id"]),
        datasource=row["datasource"],
        prompt=row["prompt"],
        response=row["response"],
        reference=row["reference"],
        right=row["right"],
        score=number_or_nan(row.get("score")),
    )


def number_or_nan(value: Any) -> float:
    """A finite float, or NaN."""
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if math.isfinite(number) else math.nan
