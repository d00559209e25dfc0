"""Verdicts: is this response right?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from openrlhf_maestro.data.tasks import check


def rule_verdicts(rows: Sequence[Mapping[str, str]], responses: Sequence[str]) -> list[bool]:
    """Judge responses to prompts of the bundled tasks by their families' rules.

    Args:
        rows: one a response, with `datasource`, `prompt` (without chat template) and `reference`.
        responses: whole response texts, tags included.

    Raises:
        ValueError: the numbers of rows and responses differ, or a row is not of a bundled family.
    """
    if len(rows) != len(responses):
        raise ValueError(f"{len(rows)} rows but {len(responses)} responses")
    return [
        check(row["datasource"], row["prompt"], row["reference"], response)
        for row, response in zip(rows, responses, strict=True)
    ]
