"""Verdicts by rule, for the bundled tasks."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_maestro.data.tasks import check
from openrlhf_maestro.evaluation.verdicts import Item, Verdict


class RuleVerdicts:
    """The bundled tasks' rule checkers."""

    def __call__(self, items: Sequence[Item]) -> list[Verdict]:
        """Raises ValueError for an item that is not of a bundled family."""
        return [self._verdict(item) for item in items]

    @staticmethod
    def _verdict(item: Item) -> Verdict:
        right = check(item.datasource, item.question, item.reference or "", item.response)
        return Verdict(right, None)
