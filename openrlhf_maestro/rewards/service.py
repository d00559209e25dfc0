"""Calls to an outside scorer: bounded, retried, and given up for good when it is down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    stop_before_delay,
    wait_exponential,
    wait_random,
)

from openrlhf_maestro.config.components import ServiceOptions
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rewards.groups import Missing

T = TypeVar("T")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
# What a server says when it may do better later.
RETRIED_STATUS = frozenset({408, 409, 425, 429, *range(500, 600)})
# A circuit that opened lets calls through again after this long: a run has ended by then, a server has not.
REST_S = 30.0
MAX_EXCERPT = 200
RESUME = "Bring the scorer back and continue with --run.resume auto."


class TransientError(Exception):
    """A failure that may pass: no connection, a time-out, a status of `RETRIED_STATUS`."""


class ServiceDown(RunError):
    """So many calls in a row were given up that the scorer is taken for dead: the circuit is open."""


class Service:
    """Calls on behalf of one component or judge (RELIABILITY row 13).

    At most `concurrency` calls at a time. A call that raises TransientError is repeated with exponential, jittered
    waits; no repetition starts later than `retry_s` after the first attempt, then its value is missing. After
    `max_failures` such calls without a success between them the circuit opens: this call and every one of the next
    `REST_S` seconds raise ServiceDown.
    """

    def __init__(self, name: str, options: ServiceOptions, *, owner: str | None = None, mend: str = RESUME) -> None:
        """`owner`: who calls, for errors; default "reward component <name>". `mend`: how to go on after an outage."""
        self.name = name
        self._owner = owner
        self._mend = mend
        self.options = options
        self.failures = 0
        self._slots = asyncio.Semaphore(options.concurrency)
        self._open_until_s = 0.0

    async def call(self, attempt: Callable[[], Awaitable[T]]) -> T | Missing:
        """What `attempt` returns, or the reason why there is nothing. Other exceptions than TransientError pass."""
        async with self._slots:
            if time.monotonic() < self._open_until_s:
                raise self._down()
            try:
                result: T = await self._retrying()(self._bounded, attempt)
            except RetryError as error:
                reason = str(error.last_attempt.exception())
                self.failures += 1
                if self.failures >= self.options.max_failures:
                    self._open_until_s = time.monotonic() + REST_S
                    raise self._down(reason) from None
                return Missing(reason)
            self.failures = 0
            return result

    def _retrying(self) -> AsyncRetrying:
        return AsyncRetrying(
            stop=stop_before_delay(self.options.retry_s),
            wait=wait_exponential(FIRST_WAIT_S, max=LONGEST_WAIT_S) + wait_random(0, FIRST_WAIT_S),
            retry=retry_if_exception_type(TransientError),
        )

    async def _bounded(self, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            return await asyncio.wait_for(attempt(), self.options.timeout_s)
        except asyncio.TimeoutError:
            raise TransientError(f"no answer within {self.options.timeout_s:g} s") from None

    def _down(self, reason: str = "") -> ServiceDown:
        cause = f" (the last: {reason})" if reason else ""
        owner = self._owner or f"reward component {self.name}"
        return ServiceDown(f"{owner}: {self.failures} calls in a row failed{cause}. {self._mend}")


def excerpt(text: str) -> str:
    """The beginning of an answer, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_EXCERPT else f"{line[:MAX_EXCERPT]}..."
