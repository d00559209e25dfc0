"""Evaluations of the same rows against a baseline: paired differences, tests, Holm's correction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from openrlhf_maestro.errors import DataError, UserError
from openrlhf_maestro.evaluation.loading import Evaluation, same_rows
from openrlhf_maestro.evaluation.results import Result
from openrlhf_maestro.evaluation.statistics import RESAMPLES, Estimate, difference_interval, holm, paired_test
from openrlhf_maestro.evaluation.tables import OVERALL, Cluster, Summary, cluster_of, summarise

COMPARISON = "comparison.json"

Measure = Literal["right", "score"]


@dataclass(frozen=True)
class ContrastRow:
    """One data set, or all of them: an evaluation less the baseline, over the pairs where both have a verdict."""

    name: str
    pairs: int
    clusters: int
    left_out: int  # pairs in which at least one has no verdict
    evaluation: float | None  # its mean over the pairs: share of right ones, score, or win rate
    baseline: float | None
    difference: Estimate | None  # evaluation - baseline, bootstrap of whole clusters
    bootstrap_p: float | None
    only_evaluation: int | None  # pairs where it alone is right; None for scores
    only_baseline: int | None
    test: str | None
    p: float | None
    p_holm: float | None  # across the data sets of this contrast; None for all of them together


@dataclass(frozen=True)
class Contrast:
    """One evaluation against the baseline in one measure."""

    evaluation: str
    baseline: str
    measure: Measure
    datasources: tuple[ContrastRow, ...]  # sorted by name
    overall: ContrastRow


@dataclass(frozen=True)
class Compared:
    """One of the evaluations, summarised over the rows that all have."""

    label: str
    folder: str
    model: str
    data: str
    left_out: int  # its responses that another evaluation has not: --common
    summary: Summary


@dataclass(frozen=True)
class Comparison:
    """Everything `maestro evaluate --compare` says."""

    verdict: Mapping[str, Any]
    baseline: str
    evaluations: tuple[Compared, ...]
    contrasts: tuple[Contrast, ...]
    confidence: float
    seed: int
    resamples: int

    def to_json(self) -> dict[str, Any]:
        """Plain objects, lists and numbers; None where there is no number."""
        return asdict(self)


@dataclass(frozen=True)
class _Settings:
    confidence: float
    seed: int
    resamples: int


def compare(
    evaluations: Sequence[Evaluation],
    *,
    baseline: str | None = None,
    common: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Every evaluation against the baseline, paired by key.

    Args:
        evaluations: two or more, of one kind of verdict, under labels that differ (`load_evaluations`).
        baseline: the label of one of them; None: the first.
        common: leave out rows that not all have, instead of refusing.
        confidence: of the intervals.
        seed: of bootstraps and random sign patterns.
        resamples: of each.

    Raises:
        UserError: fewer than two evaluations, or the baseline is none of them.
        DataError: they are not of the same rows, or hold no verdict.
    """
    if len(evaluations) < 2:
        raise UserError("A comparison needs two evaluations or more. Give the folders of both.")
    labels = [one.label for one in evaluations]
    chosen = baseline if baseline is not None else labels[0]
    if chosen not in labels:
        raise UserError(f"The baseline {chosen} is none of the evaluations, which are {', '.join(labels)}.")
    keys = same_rows(evaluations, common=common)
    settings = _Settings(confidence, seed, resamples)
    pairwise = evaluations[0].pairwise
    base = evaluations[labels.index(chosen)]
    measures = _measures([one.results[key] for one in evaluations for key in keys], pairwise)
    return Comparison(
        verdict=evaluations[0].verdict,
        baseline=chosen,
        evaluations=tuple(_compared(one, keys, pairwise, settings) for one in evaluations),
        contrasts=tuple(
            _contrast(one, base, keys, measure, settings)
            for one in evaluations
            if one is not base
            for measure in measures
        ),
        confidence=confidence,
        seed=seed,
        resamples=resamples,
    )


def _measures(results: Sequence[Result], pairwise: bool) -> list[Measure]:
    """`right` where there are such verdicts, `score` where scores say more than these; of duels the win rate."""
    if pairwise:
        return ["score"]
    measures: list[Measure] = []
    if any(result.right is not None for result in results):
        measures.append("right")
    if any(result.score is not None and result.score != result.right for result in results):
        measures.append("score")
    if not measures:
        raise DataError("These evaluations hold responses without any verdict. Evaluate with verdict.kind first.")
    return measures


def _compared(one: Evaluation, keys: Sequence[str], pairwise: bool, settings: _Settings) -> Compared:
    summary = summarise([one.results[key] for key in keys], pairwise=pairwise, **asdict(settings))
    return Compared(one.label, str(one.folder), one.model, one.data, len(one.results) - len(keys), summary)


def _contrast(
    one: Evaluation, base: Evaluation, keys: Sequence[str], measure: Measure, settings: _Settings
) -> Contrast:
    pairs = [(one.results[key], base.results[key]) for key in keys]
    grouped: dict[str, list[tuple[Result, Result]]] = {}
    for pair in pairs:
        grouped.setdefault(pair[0].datasource, []).append(pair)
    rows = [_row(name, part, measure, settings) for name, part in sorted(grouped.items())]
    return Contrast(one.label, base.label, measure, _with_holm(rows), _row(OVERALL, pairs, measure, settings))


def _row(name: str, pairs: Sequence[tuple[Result, Result]], measure: Measure, settings: _Settings) -> ContrastRow:
    first, second, clusters = _values(pairs, measure)
    left_out = len(pairs) - len(first)
    if not first:
        nothing = dict.fromkeys(
            ("evaluation", "baseline", "difference", "bootstrap_p", "only_evaluation", "only_baseline", "test", "p")
        )
        return ContrastRow(name, 0, 0, left_out, **nothing, p_holm=None)
    differences = [one - two for one, two in zip(first, second, strict=True)]
    sampled = {"seed": settings.seed, "resamples": settings.resamples}
    found = difference_interval(differences, clusters, confidence=settings.confidence, **sampled)
    counted = measure == "right"
    tested = paired_test(differences, clusters, counted="exact McNemar" if counted else None, **sampled)
    return ContrastRow(
        name=name,
        pairs=len(first),
        clusters=len(set(clusters)),
        left_out=left_out,
        evaluation=sum(first) / len(first),
        baseline=sum(second) / len(second),
        difference=found.estimate,
        bootstrap_p=found.p,
        only_evaluation=sum(difference > 0 for difference in differences) if counted else None,
        only_baseline=sum(difference < 0 for difference in differences) if counted else None,
        test=tested.test,
        p=tested.p,
        p_holm=None,
    )


def _values(pairs: Sequence[tuple[Result, Result]], measure: Measure) -> tuple[list[float], list[float], list[Cluster]]:
    first, second, clusters = [], [], []
    for one, two in pairs:
        value, other = getattr(one, measure), getattr(two, measure)
        if value is not None and other is not None:
            first.append(float(value))
            second.append(float(other))
            clusters.append(cluster_of(one))
    return first, second, clusters


def _with_holm(rows: Sequence[ContrastRow]) -> tuple[ContrastRow, ...]:
    adjusted = iter(holm([row.p for row in rows if row.p is not None]))
    return tuple(replace(row, p_holm=next(adjusted)) if row.p is not None else row for row in rows)


def read_comparison(path: Path) -> Comparison:
    """What `maestro evaluate --compare` wrote: the file, or the folder it is in.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    file = path / COMPARISON if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        evaluations = [one | {"summary": Summary.from_json(one["summary"])} for one in data["evaluations"]]
        contrasts = [_contrast_from_json(one) for one in data["contrasts"]]
        read = {"evaluations": tuple(Compared(**one) for one in evaluations), "contrasts": tuple(contrasts)}
        if not isinstance(data["verdict"]["kind"], str):
            raise TypeError("verdict.kind is no text")
        return Comparison(**(data | read))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. `maestro evaluate --compare` writes it.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file} is not a comparison of evaluations: {type(error).__name__} {error}.") from None


def _contrast_from_json(data: Mapping[str, Any]) -> Contrast:
    rows = tuple(_row_from_json(row) for row in data["datasources"])
    return Contrast(**{**data, "datasources": rows, "overall": _row_from_json(data["overall"])})


def _row_from_json(data: Mapping[str, Any]) -> ContrastRow:
    difference = Estimate(**data["difference"]) if data["difference"] is not None else None
    return ContrastRow(**{**data, "difference": difference})
