"""Scores of the components that need no model's output, computed while other groups are still being sampled."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Collection, Coroutine, Iterator, Sequence
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

LOOK_S = 0.5  # how often the loop is looked after
SILENCE_S = 60.0
CLOSE_S = 5.0


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

    columns: dict[str, Tensor]  # by component: (B,) fp32, -inf at fault, NaN missing or skipped
    reasons: dict[str, str]  # by component: why the first of its missing values is missing
    seconds: dict[str, float]  # by component: in which it worked


@dataclass
class _Pending:
    groups: dict[int, dict[str, Future[Sequence[Score]]]] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)  # responses of each group
    busy: dict[str, BusyTime] = field(default_factory=dict)


class BackgroundScoring:
    """An event loop in a thread of its own: `submit` groups as they arrive, `collect` when all are in.

    CPU rules and calls to servers run in it while the main thread waits for the engines.
    """

    def __init__(self, components: Sequence[Component], silence_s: float = SILENCE_S) -> None:
        """`silence_s`: a loop that does not turn for so long is taken for blocked."""
        self._scorers: dict[str, GroupScorer] = {
            part.name: part.scorer for part in components if not isinstance(part.scorer, MeasuredScorer)
        }
        self._silence_s = silence_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scoring", daemon=True)
        self._thread.start()
        self._last_turn_s = time.monotonic()
        self._start(self._turn())
        self._pending = self._nothing_pending()

    def submit(self, index: int, group: Group, skipped: Collection[str] = ()) -> None:
        """Start every scorer on a group, but those of the components `skipped`; `index` is its place in the batch.

        Raises:
            RunError: what a scorer has raised on a group before.
        """
        self._pending.sizes[index] = len(group)
        self._pending.groups[index] = {
            name: self._start(_timed(scorer, group, self._pending.busy[name]))
            for name, scorer in self._scorers.items()
            if name not in skipped
        }
        self._raise_failures(self._pending)

    def collect(self) -> TextScores:
        """The scores of all groups submitted since the last call, in the order of their index.

        Raises:
            RunError: what a scorer raised; a scorer that did not give one number for every response; a function that
                blocks the loop.
        """
        pending, self._pending = self._pending, self._nothing_pending()
        left = [call for by_name in pending.groups.values() for call in by_name.values()]
        while left:
            left = list(wait(left, timeout=LOOK_S, return_when=FIRST_EXCEPTION).not_done)
            self._raise_failures(pending)
            self._check_loop(pending)
        columns: dict[str, Tensor] = {}
        reasons: dict[str, str] = {}
        for name in self._scorers:
            column: list[float] = []
            for index in sorted(pending.groups):
                call = pending.groups[index].get(name)
                scores = call.result() if call is not None else []
                column += [_number(score) for score in scores] or [math.nan] * pending.sizes[index]
                if why := next(filter(None, map(no_value, scores)), None):
                    reasons.setdefault(name, why)
            columns[name] = torch.tensor(column)
        return TextScores(columns, reasons, {name: busy.seconds for name, busy in pending.busy.items()})

    def close(self) -> None:
        """End what is under way, close every scorer and end the thread. A blocked one ends with the process."""
        if self._thread.is_alive():
            closing = self._start(self._shut_down())
            wait([closing], timeout=CLOSE_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _shut_down(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.gather(*(scorer.close() for scorer in self._scorers.values()))

    async def _turn(self) -> None:
        while True:
            self._last_turn_s = time.monotonic()
            await asyncio.sleep(LOOK_S)

    def _raise_failures(self, pending: _Pending) -> None:
        for by_name in pending.groups.values():
            for name, call in by_name.items():
                if call.cancelled():
                    raise RunError(f"reward component {name}: its function was cancelled by what it waited for.")
                if call.done() and (error := call.exception()) is not None:
                    raise error

    def _check_loop(self, pending: _Pending) -> None:
        if self._thread.is_alive() and time.monotonic() - self._last_turn_s < self._silence_s:
            return
        waiting = sorted({name for calls in pending.groups.values() for name, call in calls.items() if not call.done()})
        raise RunError(
            f"reward component {' or '.join(waiting)}: an async function blocks the scoring of all components for more "
            f"than {self._silence_s:g} s. Await what takes time, or write it as a plain function, which gets a thread."
        )

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
