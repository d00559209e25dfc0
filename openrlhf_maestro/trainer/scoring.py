"""Scores of the components that need no model's output, computed while other groups are still being sampled."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rewards import Component, Group, GroupScorer, MeasuredScorer, Missing, Score
from openrlhf_maestro.rewards.groups import no_value

T = TypeVar("T")


@dataclass
class BusyTime:
    """Seconds in which at least one of several overlapping pieces of work was going on."""

    seconds: float = 0.0
    _active: int = 0
    _since: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        if self._active == 0:
            self._since = time.perf_counter()
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            if self._active == 0:
                self.seconds += time.perf_counter() - self._since


@dataclass(frozen=True)
class TextScores:
    """What the text scorers said of a batch of groups."""

    columns: dict[str, Tensor]  # by component: (B,) fp32, -inf at fault, NaN missing
    reasons: dict[str, str]  # by component: why the first of its missing values is missing
    seconds: dict[str, float]  # by component: in which it worked


@dataclass
class _Pending:
    groups: dict[int, dict[str, Future[Sequence[Score]]]] = field(default_factory=dict)
    busy: dict[str, BusyTime] = field(default_factory=dict)


class BackgroundScoring:
    """An event loop in a thread of its own: `submit` groups as they arrive, `collect` when all are in.

    CPU rules and calls to servers run in it while the main thread waits for the engines.
    """

    def __init__(self, components: Sequence[Component]) -> None:
        self._scorers: dict[str, GroupScorer] = {
            part.name: part.scorer for part in components if not isinstance(part.scorer, MeasuredScorer)
        }
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scoring", daemon=True)
        self._thread.start()
        self._pending = self._nothing_pending()

    def submit(self, index: int, group: Group) -> None:
        """Start every scorer on a group; `index` is its place in the batch."""
        self._pending.groups[index] = {
            name: self._start(_timed(scorer, group, self._pending.busy[name])) for name, scorer in self._scorers.items()
        }

    def collect(self) -> TextScores:
        """The scores of all groups submitted since the last call, in the order of their index.

        Raises:
            RunError: what a scorer raised, or a scorer that did not give one number for every response.
        """
        pending, self._pending = self._pending, self._nothing_pending()
        calls = [call for by_name in pending.groups.values() for call in by_name.values()]
        wait(calls, return_when=FIRST_EXCEPTION)
        for call in calls:
            if call.done() and (error := call.exception()) is not None:
                for other in calls:
                    other.cancel()
                raise error
        columns, reasons = {}, {}
        for name in self._scorers:
            scores = [score for index in sorted(pending.groups) for score in pending.groups[index][name].result()]
            columns[name] = torch.tensor([_number(score) for score in scores])
            if why := next(filter(None, map(no_value, scores)), None):
                reasons[name] = why
        return TextScores(columns, reasons, {name: busy.seconds for name, busy in pending.busy.items()})

    def close(self) -> None:
        """Close every scorer and end the thread."""
        for scorer in self._scorers.values():
            self._start(scorer.close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _nothing_pending(self) -> _Pending:
        return _Pending(busy={name: BusyTime() for name in self._scorers})


async def _timed(scorer: GroupScorer, group: Group, busy: BusyTime) -> Sequence[Score]:
    with busy.running():
        scores = await scorer.score(group)
    if len(scores) != len(group):
        raise RunError(f"{type(scorer).__name__} gave {len(scores)} scores for {len(group)} responses.")
    return scores


def _number(score: Score) -> float:
    return math.nan if isinstance(score, Missing) or no_value(score) is not None else float(score)
