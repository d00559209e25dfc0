"""Signals that ask a run to stop: it finishes its step first (RELIABILITY row 21)."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C, what `kill` and Slurm's cancel send, and what Slurm sends before its time limit (--signal=USR1@300).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether the run was asked to stop.

    Between `begin_steps` and `begin_closing` the first signal only sets `requested`; a second one, or one before the
    steps, raises KeyboardInterrupt. While the run closes none does anything. In the main thread only.
    """

    def __init__(self) -> None:
        self.requested = False
        self._in_steps = False
        self._closing = False
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
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def begin_steps(self) -> None:
        """From now on there is a step to finish."""
        self._in_steps = True

    def begin_closing(self) -> None:
        """From now on the run is ending anyway, and its processes have to be ended first."""
        self._closing = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._closing:
            return
        if self.requested or not self._in_steps:
            raise KeyboardInterrupt
        self.requested = True
        # Not by the console: the signal may have come while that was printing.
        os.write(2, b"\nmaestro: finishing this step and writing a checkpoint; a second signal stops at once\n")
