"""The files of a run directory as typed values; a run that is still going, or was killed, reads too."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from openrlhf_maestro.errors import UserError
from openrlhf_maestro.report.rollouts import (
    UNREADABLE,
    Evaluated,
    Rollout,
    count_rows,
    number_or_nan,
    read_evaluated,
    read_rollouts,
)

STEP_FILE = re.compile(r"step_(\d+)\.parquet")
Read = TypeVar("Read")

# Components of the paper first and in its order, so that each keeps its place and colour in every report.
PAPER_COMPONENTS = ("format", "perplexity", "entropy", "length", "preference")


def in_paper_order(names: Iterable[str]) -> list[str]:
    """The names, each once: the paper's first, the others as they come."""
    found = list(dict.fromkeys(names))
    return sorted(
        found, key=lambda name: PAPER_COMPONENTS.index(name) if name in PAPER_COMPONENTS else len(PAPER_COMPONENTS)
    )


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
class Run:
    """A run directory's content. `problems` says in words what could not be read, for the page to show."""

    path: Path
    config: Mapping[str, Any]
    records: list[dict[str, Any]]
    rollout_files: dict[int, Path]
    evaluation_files: dict[int, Path]
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
        return Series([record["step"] for record in logged], [number_or_nan(record[key]) for record in logged])

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
        return in_paper_order(found)

    def weight_datasources(self) -> list[str]:
        """Data sets that have weights of their own, `conductor/weight/<datasource>/<name>`, sorted."""
        pairs = self.names_between("conductor/weight/", "")
        return sorted({pair.rpartition("/")[0] for pair in pairs if "/" in pair})

    @property
    def finished(self) -> bool:
        """The final model is there, and was written after the last line of metrics.jsonl."""
        model, metrics = self.path / "model" / "config.json", self.path / "metrics.jsonl"
        return model.is_file() and metrics.is_file() and model.stat().st_mtime >= metrics.stat().st_mtime

    def rollout_counts(self) -> dict[int, int]:
        """Responses in each step's file, steps ascending; damaged files are left out, with a line in `problems`."""
        counted = {step: self._read(path, count_rows) for step, path in self.rollout_files.items()}
        return {step: count for step, count in counted.items() if count is not None}

    def rollouts(self, step: int, most: int | None = None) -> list[Rollout]:
        """The responses of one step (`read_rollouts`); empty, with a line in `problems`, where the file is damaged."""
        return self._read(self.rollout_files[step], lambda path: read_rollouts(path, most)) or []

    def evaluated(self, step: int) -> list[Evaluated]:
        """The held-out responses of one evaluation; empty, with a line in `problems`, where the file is damaged."""
        return self._read(self.evaluation_files[step], read_evaluated) or []

    def _read(self, path: Path, reader: Callable[[Path], Read]) -> Read | None:
        try:
            return reader(path)
        except UNREADABLE as error:
            fault = f"{path.parent.name}/{path.name} could not be read"
            if not any(problem.startswith(fault) for problem in self.problems):
                self.problems.append(f"{fault} ({_first_line(error)}); it was left out.")
            return None


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
    rollouts, evaluations = (
        {step: path for step, path in _step_files(run_dir / folder) if step <= reached}
        for folder in ("rollouts", "evaluations")
    )
    return Run(run_dir, config, records, rollouts, evaluations, problems)


def flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested options as (dotted name, value)."""
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


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


def _step_files(folder: Path) -> Iterable[tuple[int, Path]]:
    found = ((STEP_FILE.fullmatch(path.name), path) for path in folder.glob("step_*.parquet"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
