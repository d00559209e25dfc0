"""Verdicts: is this response right, or how good is it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Item:
    """One response to be judged."""

    key: str  # tells it from every other one of the evaluation
    datasource: str
    question: str  # the prompt as the data has it: without templates
    reference: str | None
    response: str  # the whole text, tags included, without the stop token


@dataclass(frozen=True)
class Verdict:
    """What was found. `right`: None where there is no yes or no; `score`: in [0, 1], None where there is none."""

    right: bool | None
    score: float | None
    votes: tuple[bool | None, ...] = ()  # of a judge; None: a reply that could not be read
    problem: str | None = None  # why there is neither `right` nor `score`


class Verdicts(Protocol):
    """Judges responses."""

    def __call__(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item, in their order."""


@dataclass
class VoteCounts:
    """How far a judge is, in replies: one a vote, two where it compares in both orders."""

    total: int
    reused: int = 0  # were on disk already
    asked: int = 0  # answered now
    unreadable: int = 0  # of the reused and the asked
    missing: int = 0  # the endpoint gave none, see `judge.retry_s`

    @property
    def done(self) -> int:
        return self.reused + self.asked + self.missing


Watch = Callable[[VoteCounts], None]
