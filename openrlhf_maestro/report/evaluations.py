"""What `maestro evaluate` left, for the page: a summary of each evaluation, and their comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_maestro.errors import DataError
from openrlhf_maestro.evaluation.compare import read_comparison
from openrlhf_maestro.evaluation.comparison_page import notes, tables
from openrlhf_maestro.evaluation.results import SUMMARY
from openrlhf_maestro.evaluation.statistics import Estimate
from openrlhf_maestro.evaluation.tables import Summary, Table, shown_rows, table


@dataclass(frozen=True)
class EvaluationSummary:
    """One evaluation: what it is of, its table, and beside each row the interval that can be drawn on 0 to 1."""

    name: str
    facts: dict[str, str]
    table: Table
    estimates: list[Estimate | None]


@dataclass(frozen=True)
class ComparisonTables:
    """A comparison of evaluations: its tables, and what one has to know to read them."""

    tables: list[Table]
    notes: list[str]


def read_summary(folder: Path) -> EvaluationSummary:
    """The summary.json of a finished evaluation. Raises DataError where it is not there or is something else."""
    path = folder / SUMMARY
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        summary = Summary.from_json(content)
        facts = {"model": str(content["model"]), "data": str(content["data"]), "verdict": _verdict(content["verdict"])}
        rows = shown_rows(summary)
        estimates = [row.duel.win_rate if row.duel else row.share or row.score for row in rows]
        return EvaluationSummary(str(content["name"]), facts, table(summary), estimates)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. Give the folder of a finished `maestro evaluate`."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no summary of an evaluation ({error}). `maestro evaluate` writes it.") from None


def read_comparison_tables(path: Path) -> ComparisonTables:
    """The comparison.json of `maestro evaluate --compare`, or its folder. Raises DataError where it cannot be read."""
    comparison = read_comparison(path)
    try:
        return ComparisonTables(tables(comparison), notes(comparison))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not a comparison of evaluations ({error}). `maestro evaluate --compare` writes it."
        ) from None


def _verdict(verdict: Mapping[str, Any]) -> str:
    """`judge (model m, prompt strict, votes 3)`: the kind, and the settings that are set."""
    settings = [f"{name} {value}" for name, value in verdict.items() if name != "kind" and value not in (None, {}, [])]
    return f"{verdict['kind']} ({', '.join(settings)})" if settings else str(verdict["kind"])
