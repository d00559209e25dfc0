"""Accuracy as k of n, with its 95 % interval, by data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest


@dataclass(frozen=True)
class Accuracy:
    """`right` of `total` responses were right."""

    right: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.total or self.total == 0:
            raise ValueError(f"{self.right} of {self.total} is not an accuracy")

    @property
    def share(self) -> float:
        """right / total, in [0, 1]."""
        return self.right / self.total

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's score interval (1927): keeps its coverage for small n and for shares near 0 and 1."""
        bounds = binomtest(self.right, self.total).proportion_ci(confidence, method="wilson")
        return float(bounds.low), float(bounds.high)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.share:.1%} ({self.right}/{self.total}, 95 % {low:.1%} to {high:.1%})"


def accuracy_by_datasource(datasources: Sequence[str], verdicts: Sequence[bool]) -> dict[str, Accuracy]:
    """Accuracy of each data set, in the order of their names.

    Args:
        datasources: the data set of each verdict.
        verdicts: whether each response was right.

    Raises:
        ValueError: the two differ in length.
    """
    if len(datasources) != len(verdicts):
        raise ValueError(f"{len(datasources)} datasources but {len(verdicts)} verdicts")
    grouped: dict[str, list[bool]] = {}
    for datasource, verdict in zip(datasources, verdicts, strict=True):
        grouped.setdefault(datasource, []).append(verdict)
    return {name: Accuracy(sum(hits), len(hits)) for name, hits in sorted(grouped.items())}
