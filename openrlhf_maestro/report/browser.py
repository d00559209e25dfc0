"""The browsable tables of the page: what is embedded for browser.js, and what their controls offer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf_maestro.report.embed import visible
from openrlhf_maestro.report.rollouts import Evaluated
from openrlhf_maestro.report.sample import MAX_TEXT, EvaluationSample, Sample

# A raw value that is the response's fault (-inf); JSON has no infinities.
FAULT = "fault"

SORTS = {
    "step": "step",
    "reward": "scalar reward",
    "advantage": "advantage",
    "tokens": "length",
    "datasource": "data set",
}
COMPONENT_SORTS = {"raw": "raw value", "norm": "normalised value", "weight": "weight"}
EVALUATION_SORTS = {"datasource": "data set", "right": "verdict", "score": "score"}


@dataclass(frozen=True)
class Browser:
    """One table: its data, how many of how many rows that is, and the choices of its controls."""

    data: dict[str, Any]
    shown: int
    total: int
    datasources: list[str]
    steps: list[int]
    sorts: dict[str, dict[str, str]]  # group -> value of the option -> what it says
    names: list[str]  # components
    scored: bool = False  # there are scores between 0 and 1


def rollout_browser(sample: Sample, components: Sequence[str], colours: dict[str, str]) -> Browser | None:
    """The table of training responses; None without any."""
    if not sample.rows:
        return None
    sorts = {"": SORTS} | {
        title: {f"{field}.{place}": f"{name}, {title}" for place, name in enumerate(components)}
        for field, title in COMPONENT_SORTS.items()
    }
    return Browser(
        rollout_table(sample, components, colours),
        len(sample.rows),
        sample.total,
        sorted({row.datasource for row in sample.rows}),
        sample.steps[::-1],
        sorts,
        list(components),
    )


def evaluation_browser(sample: EvaluationSample) -> Browser | None:
    """The table of held-out responses; None without any. `steps`: of the last and, where there is one, the first."""
    if not sample.pairs:
        return None
    firsts = [pair.first.step for pair in sample.pairs if pair.first]
    scored = any(0 < pair.last.score < 1 for pair in sample.pairs)
    return Browser(
        evaluation_table(sample),
        len(sample.pairs),
        sample.total,
        sorted({pair.last.datasource for pair in sample.pairs}),
        [sample.pairs[0].last.step, *firsts[:1]],
        {"": {key: title for key, title in EVALUATION_SORTS.items() if scored or key != "score"}},
        [],
        scored,
    )


def rollout_table(sample: Sample, components: Sequence[str], colours: dict[str, str]) -> dict[str, Any]:
    """What browser.js makes the table of responses from; each group's prompt and reference stand once.

    A row is [group, response, place of the emphasised component or -1, reward, advantage, tokens, truncated,
    raw values, normalised values, weights], with null for what is missing.
    """
    groups: dict[tuple[int, int], int] = {}
    asked: list[list[Any]] = []
    rows = []
    for row in sample.rows:
        if (row.step, row.group) not in groups:
            groups[row.step, row.group] = len(asked)
            asked.append([row.step, row.group, row.datasource, _text(row.prompt), _text(row.reference)])
        rows.append(
            [
                groups[row.step, row.group],
                _text(row.response),
                components.index(row.action) if row.action in components else -1,
                _number(row.scalar_reward),
                _number(row.advantage),
                row.response_tokens,
                int(row.truncated),
                [_number(row.raw.get(name, math.nan)) for name in components],
                [_number(row.norm.get(name, math.nan)) for name in components],
                [_number(row.weight.get(name, math.nan)) for name in components],
            ]
        )
    return {
        "components": [[name, colours[name]] for name in components],
        "groups": asked,
        "rows": rows,
    }


def evaluation_table(sample: EvaluationSample) -> dict[str, Any]:
    """What browser.js makes the table of held-out responses from.

    A row is [data set, prompt, reference, response, verdict, score] and, where the first evaluation has the same row,
    [step, response, verdict, score] of it.
    """
    rows: list[list[Any]] = []
    for pair in sample.pairs:
        row = [pair.last.datasource, _text(pair.last.prompt), _text(pair.last.reference), *_judged(pair.last)]
        rows.append([*row, [pair.first.step, *_judged(pair.first)] if pair.first else None])
    return {"rows": rows}


def _judged(row: Evaluated) -> list[Any]:
    return [_text(row.response), row.right, _number(row.score)]


def _text(text: str | None) -> str | None:
    return None if text is None else visible(text, MAX_TEXT)


def _number(value: float) -> float | str | None:
    """Six significant digits, as many as a float32 has."""
    if math.isnan(value):
        return None
    if math.isinf(value):
        return FAULT if value < 0 else None
    return float(f"{value:.6g}")
