"""Signals that ask a run to stop: it finishes its step first (RELIABILITY row 21)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C, what `kill` and Slurm's cancel send, and what Slurm sends before its time limit (--signal=USR1@300).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether the run was asked to stop.

    Between `begin_steps` and `end_steps` the first signal only sets `requested`; a second one, or one at another time,
    raises KeyboardInterrupt. What was ignored when the process began stays so, as Ctrl-C is for what a script starts in
    the background. In the main thread only.
    """

    def __init__(self) -> None:
        self.requested = False
        self._in_steps = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Put the handlers in place, again after a library has put its own there (Ray does when it starts)."""
        for number, before in self._before.items():
            if before is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def begin_steps(self) -> None:
        """From now on there is a step to finish."""
        self._in_steps = True

    def end_steps(self) -> None:
        """From now on nothing is lost by stopping at once."""
        self._in_steps = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested or not self._in_steps:
            raise KeyboardInterrupt
        self.requested = True
        # Not by the console: the signal may have come while that was printing.
        os.write(2, b"\nmaestro: finishing this step, then the run is saved and ends; a second signal stops at once\n")


@contextmanager
def ignored(*signals: signal.Signals) -> Iterator[None]:
    """Does nothing on these while the block runs; processes that it starts ignore them for good."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
