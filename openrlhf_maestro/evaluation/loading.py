"""Finished evaluations from their folders, checked for being of the same rows and verdicts."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openrlhf_maestro.errors import DataError, UserError
from openrlhf_maestro.evaluation.log import read_rows
from openrlhf_maestro.evaluation.results import RESULTS, SUMMARY, Result, read_results

RESPONSES = "responses.jsonl"
PAIRWISE = "pairwise"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: what it is of, and its results by key."""

    label: str
    folder: Path
    model: str
    data: str
    verdict: Mapping[str, Any]  # how responses were judged: `kind` and its settings
    results: Mapping[str, Result]
    asked: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # question and reference by key, where kept

    @property
    def pairwise(self) -> bool:
        """Whether the results are wins, ties and losses."""
        return bool(self.verdict["kind"] == PAIRWISE)


def load_evaluations(folders: Sequence[Path]) -> list[Evaluation]:
    """Evaluations of the same kind of verdict, under labels that differ: their names, else their folders'.

    Raises:
        UserError: a folder is given twice, or the verdicts are of different kinds or settings.
        DataError: a folder holds no finished evaluation, or what is in its files makes no sense.
    """
    refuse_repeated(folders, "evaluation")
    found = [_load(folder) for folder in folders]
    first = found[0]
    for other in found[1:]:
        if other.verdict != first.verdict:
            raise UserError(
                f"{first.folder} and {other.folder} were not judged alike: {_differing(first.verdict, other.verdict)}. "
                "A difference would not be the models'. Evaluate one of them again with the verdict of the other."
            )
    return _labelled(found)


def refuse_repeated(folders: Sequence[Path], what: str) -> None:
    """Raises UserError where one folder is given twice; `what` each of them is."""
    for folder, times in Counter(folder.resolve() for folder in folders).items():
        if times > 1:
            raise UserError(f"{folder} is given {times} times. Name every {what} once.")


def same_rows(evaluations: Sequence[Evaluation], *, common: bool) -> list[str]:
    """Keys to compare on, in the order of the first evaluation's rows.

    Args:
        evaluations: two or more.
        common: leave out rows that not all have.

    Raises:
        DataError: rows differ, or none is common.
    """
    shared = set.intersection(*(set(one.results) for one in evaluations))
    first = evaluations[0]
    for one in evaluations:
        extra = [key for key in one.results if key not in shared]
        if extra and not common:
            raise DataError(
                f"{one.label} has {len(extra)} responses (of {len(one.results)}) that another evaluation has not, such "
                f"as `{extra[0]}`. Evaluate the same rows with as many samples, or give --common to leave these out."
            )
    if not shared:
        raise DataError(f"{' and '.join(one.label for one in evaluations)} have no row in common.")
    keys = [key for key in first.results if key in shared]
    for other in evaluations[1:]:
        for key in keys:
            _check_same(key, first, other)
    return keys


def _check_same(key: str, first: Evaluation, other: Evaluation) -> None:
    one, two = first.results[key], other.results[key]
    for name in ("id", "datasource", "cluster"):
        if getattr(one, name) != getattr(two, name):
            differs = f"{name} {getattr(one, name)} and {getattr(two, name)}"
            break
    else:
        if key not in first.asked or key not in other.asked or first.asked[key] == other.asked[key]:
            return
        differs = "another question or reference"
    raise DataError(
        f"Row `{key}` is not the same in {first.label} and {other.label} ({differs}): they are of different data. "
        "Evaluate both on one file."
    )


def _load(folder: Path) -> Evaluation:
    results = read_results(folder / RESULTS)
    if not results:
        raise DataError(f"{folder / RESULTS} has no rows.")
    about = _summary(folder / SUMMARY)
    for number, result in enumerate(results, 1):
        problem = _problem(result)
        if problem:
            raise DataError(f"{folder / RESULTS}, line {number}: {problem}.")
    keys = Counter(result.key for result in results)
    repeated = [key for key, times in keys.items() if times > 1]
    if repeated:
        raise DataError(f"{folder / RESULTS} has {len(repeated)} keys more than once, such as `{repeated[0]}`.")
    return Evaluation(
        label=str(about["name"]),
        folder=folder,
        model=str(about["model"]),
        data=str(about["data"]),
        verdict=about["verdict"],
        results={result.key: result for result in results},
        asked=_asked(folder / RESPONSES),
    )


def _problem(result: Result) -> str | None:
    if not (result.right is None or isinstance(result.right, bool)):
        return f"`right` is {result.right!r}; it is true, false or null"
    score: Any = result.score
    if score is None:
        return None
    number = isinstance(score, int | float) and not isinstance(score, bool)
    if not number or not math.isfinite(score):
        return f"`score` is {score!r}; it is a number or null"
    return None


def _summary(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        kind = about["verdict"]["kind"]
        if not isinstance(kind, str):
            raise TypeError(f"verdict.kind is {kind!r}")
        return {name: about[name] for name in ("name", "model", "data", "verdict")}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Give the folder of a finished evaluation.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not the summary of an evaluation: {type(error).__name__} {error}.") from None


def _asked(path: Path) -> dict[str, tuple[Any, Any]]:
    """Question and reference by key; empty where responses were not kept."""
    if not path.is_file():
        return {}
    try:
        return {row["key"]: (row["question"], row["reference"]) for row in read_rows(path)}
    except KeyError as error:
        raise DataError(f"{path} has a row without {error}: it does not hold an evaluation's responses.") from None


def _differing(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    names = [name for name in dict.fromkeys((*first, *other)) if first.get(name) != other.get(name)]
    return ", ".join(f"{name} {first.get(name)} and {other.get(name)}" for name in names)


def _labelled(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Labels that are not unique become the folder's name, and its whole path where that is not unique either."""
    for name in (lambda one: one.folder.resolve().name, lambda one: str(one.folder.resolve())):
        times = Counter(one.label for one in evaluations)
        evaluations = [replace(one, label=name(one)) if times[one.label] > 1 else one for one in evaluations]
    return list(evaluations)
