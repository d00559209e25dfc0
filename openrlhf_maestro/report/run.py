"""The files of a run directory as typed values; a run that is still going, or was killed, reads too."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from openrlhf_maestro.errors import UserError

ROLLOUT_FILE = re.compile(r"step_(\d+)\.parquet")

# Components of the paper first and in its order, so that each keeps its place and colour in every report.
PAPER_COMPONENTS = ("format", "perplexity", "entropy", "length", "preference")


class ReportError(UserError):
    """A folder cannot be reported on; the message is one short paragraph for the user."""


@dataclass(frozen=True)
class Series:
    """One metric over the run: `values[i]` was logged at `steps[i]`, steps ascending; NaN where it was not finite."""

    steps: list[int]
    values: list[float]

    def __bool__(self) -> bool:
        return any(not math.isnan(value) for value in self.values)

    def finite(self) -> list[float]:
        """The values that are numbers, in order."""
        return [value for value in self.values if not math.isnan(value)]

    def at(self, steps: list[int]) -> list[float]:
        """The values at `steps`; NaN where none was logged."""
        by_step = dict(zip(self.steps, self.values, strict=True))
        return [by_step.get(step, math.nan) for step in steps]


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
class Run:
    """A run directory's content. `problems` says in words what could not be read, for the page to show."""

    path: Path
    config: Mapping[str, Any]
    records: list[dict[str, Any]]
    rollout_files: dict[int, Path]
    problems: list[str] = field(default_factory=list)

    def option(self, dotted: str) -> Any:
        """An option of config.yaml such as `rollout.batch_size`; None where it is not there."""
        value: Any = self.config
        for part in dotted.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        return value

    def series(self, key: str) -> Series:
        """One key of metrics.jsonl over the steps that logged it; null is the same as no key."""
        logged = [record for record in self.records if record.get(key) is not None]
        return Series([record["step"] for record in logged], [_number(record[key]) for record in logged])

    def names_between(self, prefix: str, suffix: str) -> list[str]:
        """What stands between prefix and suffix in the keys of metrics.jsonl, in order of first appearance."""
        keys = dict.fromkeys(key for record in self.records for key in record)
        return [
            key[len(prefix) : len(key) - len(suffix)]
            for key in keys
            if key.startswith(prefix) and key.endswith(suffix) and len(key) > len(prefix) + len(suffix)
        ]

    @property
    def last_step(self) -> int:
        """The last finished step; 0 before the first."""
        return self.records[-1]["step"] if self.records else 0

    def components(self) -> list[str]:
        """Names of the reward components, the paper's first."""
        found = dict.fromkeys(self.names_between("reward/", "/raw_mean"))
        found |= dict.fromkeys(name for name in self.names_between("conductor/weight/", "") if "/" not in name)
        return [name for name in PAPER_COMPONENTS if name in found] + [
            name for name in found if name not in PAPER_COMPONENTS
        ]

    def weight_datasources(self) -> list[str]:
        """Data sets that have weights of their own, `conductor/weight/<datasource>/<name>`, sorted."""
        pairs = self.names_between("conductor/weight/", "")
        return sorted({pair.rpartition("/")[0] for pair in pairs if "/" in pair})

    def rollouts(self, step: int) -> list[Rollout]:
        """The responses of one step, in file order; empty, with a line in `problems`, where the file is damaged."""
        path = self.rollout_files[step]
        try:
            rows = pq.read_table(path).to_pylist()
            return [_rollout(row) for row in rows]
        except (pa.ArrowInvalid, OSError, KeyError) as error:
            self.problems.append(f"rollouts/{path.name} could not be read ({_first_line(error)}); it was left out.")
            return []


def load_run(run_dir: Path) -> Run:
    """Read config.yaml and metrics.jsonl of `run_dir` and list its rollout files (read later, one by one).

    Raises ReportError where the folder does not exist, is not a run directory, or config.yaml is not YAML.
    """
    if not run_dir.is_dir():
        raise ReportError(f"{run_dir} is not a folder. Give the run directory, by default runs/<run.name>.")
    config_path, metrics_path = run_dir / "config.yaml", run_dir / "metrics.jsonl"
    problems: list[str] = []
    config = _read_config(config_path) if config_path.is_file() else {}
    records = _read_metrics(metrics_path, problems) if metrics_path.is_file() else []
    if not metrics_path.is_file() and "run" not in config:
        raise ReportError(
            f"{run_dir} is not a run directory: it holds neither metrics.jsonl nor the config.yaml of a run. "
            "Give the folder that `maestro train` wrote, by default runs/<run.name>."
        )
    if not config:
        problems.append("config.yaml is missing, so the settings of the run are not known.")
    # Files of later steps are left over from before a resume and will be written again.
    reached = records[-1]["step"] if records else math.inf
    files = {step: path for step, path in _rollout_files(run_dir) if step <= reached}
    return Run(run_dir, config, records, files, problems)


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReportError(f"{path} is not valid YAML: {_first_line(error)}.") from error
    return config if isinstance(config, Mapping) else {}


def _read_metrics(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """One record a step, ascending. Steps that were run again after a resume replace the earlier ones."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records: list[dict[str, Any]] = []
    for record in _parsed(lines, problems):
        while records and records[-1]["step"] > record["step"]:
            records.pop()
        if records and records[-1]["step"] == record["step"]:
            records[-1] |= record
        else:
            records.append(record)
    return records


def _parsed(lines: list[str], problems: list[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record
        elif number == len(lines):
            problems.append("The last line of metrics.jsonl is incomplete: the run is still writing, or was stopped.")
        else:
            problems.append(f"Line {number} of metrics.jsonl could not be read; it was left out.")


def _rollout_files(run_dir: Path) -> Iterable[tuple[int, Path]]:
    found = ((ROLLOUT_FILE.fullmatch(path.name), path) for path in (run_dir / "rollouts").glob("step_*.parquet"))
    return sorted((int(match[1]), path) for match, path in found if match)


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
        scalar_reward=_number(row["scalar_reward"]),
        advantage=_number(row["advantage"]),
        truncated=bool(row["truncated"]),
        response_tokens=row["response_tokens"],
        raw={name: _raw(row[f"raw_{name}"]) for name in components},
        norm={name: _number(row[f"norm_{name}"]) for name in components},
        weight={name: _number(row[f"weight_{name}"]) for name in components},
    )


def _action_name(action: str | int | None, components: list[str]) -> str | None:
    """The emphasised component, logged by name or by its place among the columns; -1 or null: none was drawn."""
    if isinstance(action, int):
        return components[action] if 0 <= action < len(components) else None
    return action or None


def _raw(value: float | None) -> float:
    """A raw reward: -inf (the response's fault) is kept; null is the same as NaN (missing)."""
    return math.nan if value is None else float(value)


def _number(value: Any) -> float:
    """A finite float, or NaN."""
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if math.isfinite(number) else math.nan


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
