"""A comparison as tables and Markdown."""

from __future__ import annotations

from openrlhf_maestro.evaluation.compare import Comparison, Contrast, ContrastRow
from openrlhf_maestro.evaluation.loading import PAIRWISE
from openrlhf_maestro.evaluation.statistics import Estimate
from openrlhf_maestro.evaluation.tables import (
    NONE,
    Table,
    is_point,
    p_text,
    percent,
    shown_rows,
    summary_cells,
    table_of,
    to_markdown,
)

# Keys of the columns that have the evaluations' own names.
EVALUATION = "mean of the evaluation"
BASELINE = "mean of the baseline"


def tables(comparison: Comparison) -> list[Table]:
    """Each evaluation alone, then every contrast with the baseline."""
    return [_alone(comparison), *(_against(contrast, comparison) for contrast in comparison.contrasts)]


def notes(comparison: Comparison) -> list[str]:
    """What one has to know to read the tables, a sentence or two each."""
    level = f"{100 * comparison.confidence:g} %"
    said = [
        f"Differences are evaluation less baseline ({comparison.baseline}), over pairs where both have a verdict. "
        f"Intervals: {level}, {comparison.resamples:,} bootstrap resamples of whole clusters, seed {comparison.seed}.",
        "p is two-sided, of the test that the row names; p (Holm) is corrected for the number of data sets.",
    ]
    if any(row.clusters < row.responses for one in comparison.evaluations for row in one.summary.datasources):
        said.append(
            "Some responses are not independent of each other (they are to one prompt, or to rows of one cluster): "
            "clusters are resampled and tested whole, and shares have Wilson's interval at the effective sample size."
        )
    differences = [row.difference for one in comparison.contrasts for row in (*one.datasources, one.overall)]
    if any(found and (found.low is None or is_point(found)) for found in differences):
        said.append(
            "A difference without an interval is of one cluster, or the same in all: how much it varies cannot be told."
        )
    said += [
        f"{one.left_out} responses of {one.label} were left out: another evaluation has no such row."
        for one in comparison.evaluations
        if one.left_out
    ]
    return said


def markdown(comparison: Comparison) -> str:
    """The whole comparison as a Markdown page."""
    title = " and ".join(one.label for one in comparison.evaluations)
    parts = [f"# {title}\n", *(to_markdown(found) for found in tables(comparison))]
    parts.append("".join(f"- {note}\n" for note in notes(comparison)))
    return "\n".join(parts)


def _alone(comparison: Comparison) -> Table:
    # By place, not by name: all are of the same data sets, one of which may be called like the overall row.
    together = zip(*(shown_rows(one.summary) for one in comparison.evaluations), strict=True)
    cells = [
        {"data set": row.name, "evaluation": one.label} | summary_cells(row, comparison.confidence)
        for rows in together
        for one, row in zip(comparison.evaluations, rows, strict=True)
    ]
    return table_of(f"evaluations, verdict: {comparison.verdict['kind']}", cells)


def _against(contrast: Contrast, comparison: Comparison) -> Table:
    rows = contrast.datasources
    several = len(rows) > 1
    what = {"right": "right", "score": "win rate" if comparison.verdict["kind"] == PAIRWISE else "score"}
    cells = [
        _cells(row, contrast, comparison.confidence, corrected=several)
        for row in ((*rows, contrast.overall) if several else rows)
    ]
    titles = {EVALUATION: contrast.evaluation, BASELINE: contrast.baseline}
    return table_of(f"{contrast.evaluation} less {contrast.baseline}: {what[contrast.measure]}", cells, titles)


def _cells(row: ContrastRow, contrast: Contrast, confidence: float, *, corrected: bool) -> dict[str, str]:
    right, level = contrast.measure == "right", f"{100 * confidence:g} %"
    value = percent if right else _score
    cells = {
        "data set": row.name,
        "pairs": str(row.pairs),
        "clusters": str(row.clusters),
        EVALUATION: value(row.evaluation),
        BASELINE: value(row.baseline),
    }
    if right:
        cells[f"points ({level})"] = _signed(row.difference, scale=100, digits=1)
        cells["only one right"] = NONE if row.only_evaluation is None else f"{row.only_evaluation}:{row.only_baseline}"
    else:
        cells[f"difference ({level})"] = _signed(row.difference, scale=1, digits=3)
    cells["p"] = p_text(row.p)
    if corrected:
        cells["p (Holm)"] = p_text(row.p_holm)
    cells["test"] = row.test or NONE
    if row.left_out:
        cells["left out"] = str(row.left_out)
    return cells


def _score(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _signed(found: Estimate | None, *, scale: int, digits: int) -> str:
    """+24.6 (+14.8 to +34.4)"""
    if found is None:
        return NONE

    def text(number: float) -> str:
        return f"{round(scale * number, digits) + 0.0:+.{digits}f}"  # + 0.0: no minus before a zero

    if found.low is None or found.high is None or is_point(found):
        return text(found.value)
    return f"{text(found.value)} ({text(found.low)} to {text(found.high)})"
