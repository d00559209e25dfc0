"""Calls to an outside scorer: time-outs, retries, the circuit."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from openrlhf_maestro.config.components import ServiceOptions
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rewards import service as module
from openrlhf_maestro.rewards.groups import Missing
from openrlhf_maestro.rewards.service import RETRIED_STATUS, Service, ServiceDown, TransientError, excerpt


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)


def make(**options: Any) -> Service:
    return Service("judge", ServiceOptions(**({"retry_s": 0, "timeout_s": 5} | options)))


def failing(times: int, result: str = "done", seen: list[float] | None = None) -> Callable[[], Awaitable[str]]:
    """Raises TransientError that many times, then returns `result`."""
    count = itertools.count(1)

    async def attempt() -> str:
        if seen is not None:
            seen.append(time.monotonic())
        number = next(count)
        if number <= times:
            raise TransientError(f"failure {number}")
        return result

    return attempt


def test_what_the_attempt_returns_is_passed_on() -> None:
    assert asyncio.run(make().call(failing(0))) == "done"


def test_a_failure_that_passes_is_retried() -> None:
    assert asyncio.run(make(retry_s=5).call(failing(3))) == "done"


def test_without_time_for_retries_the_value_is_missing_with_the_reason() -> None:
    assert asyncio.run(make(retry_s=0).call(failing(1))) == Missing("failure 1")


def test_waits_grow_and_are_jittered(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def no_sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.5)
    monkeypatch.setattr(asyncio, "sleep", no_sleep)
    for _ in range(2):
        assert asyncio.run(make(retry_s=1000).call(failing(9))) == "done"
    # 0.5 s doubled each time up to 30 s, each with up to 0.5 s more.
    least = [0.5, 1, 2, 4, 8, 16, 30, 30, 30] * 2
    assert all(low <= wait <= low + 0.5 for wait, low in zip(waits, least, strict=True))
    assert waits[:9] != waits[9:]


def test_a_wait_that_would_end_after_the_cap_on_the_total_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_S", 30.0)
    seen: list[float] = []
    started = time.monotonic()
    assert asyncio.run(make(retry_s=20).call(failing(1, seen=seen))) == Missing("failure 1")
    assert len(seen) == 1 and time.monotonic() - started < 20


def test_the_total_is_capped() -> None:
    assert isinstance(asyncio.run(make(retry_s=0.3).call(failing(10**9))), Missing)


def test_an_attempt_that_takes_too_long_has_failed() -> None:
    async def sleepy() -> str:
        await asyncio.sleep(60)
        return "too late"

    assert asyncio.run(make(timeout_s=0.05).call(sleepy)) == Missing("no answer within 0.05 s")


def test_other_exceptions_pass_at_once() -> None:
    async def refused() -> str:
        raise RunError("refused")

    with pytest.raises(RunError, match=r"^refused$"):
        asyncio.run(make(retry_s=60).call(refused))


def test_the_circuit_opens_after_so_many_calls_given_up_in_a_row() -> None:
    service = make(max_failures=3)

    async def calls() -> None:
        for _ in range(2):
            assert await service.call(failing(1)) == Missing("failure 1")
        with pytest.raises(
            ServiceDown, match=r"reward component judge: 3 calls in a row failed \(the last: failure 1\)"
        ):
            await service.call(failing(1))
        seen: list[float] = []
        with pytest.raises(ServiceDown):
            await service.call(failing(0, seen=seen))
        assert seen == []  # not even tried

    asyncio.run(calls())


def test_a_success_starts_the_count_anew() -> None:
    service = make(max_failures=2)

    async def calls() -> list[Any]:
        return [await service.call(failing(times)) for times in (1, 0, 1, 0, 1)]

    assert [isinstance(result, Missing) for result in asyncio.run(calls())] == [True, False, True, False, True]


def test_after_a_rest_an_open_circuit_lets_calls_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REST_S", 0.05)
    service = make(max_failures=1)

    async def calls() -> None:
        with pytest.raises(ServiceDown):
            await service.call(failing(1))
        await asyncio.sleep(0.06)
        with pytest.raises(ServiceDown):  # still down: one more failure opens it again
            await service.call(failing(1))
        await asyncio.sleep(0.06)
        assert await service.call(failing(0)) == "done"
        assert await service.call(failing(0)) == "done"

    asyncio.run(calls())


def test_no_more_calls_at_a_time_than_set() -> None:
    service, active, most = make(concurrency=3), 0, 0

    async def attempt() -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.01)
        active -= 1

    async def calls() -> None:
        await asyncio.gather(*(service.call(attempt) for _ in range(10)))

    asyncio.run(calls())
    assert most == 3


def test_statuses_that_may_pass() -> None:
    assert {429, 500, 502, 503, 504, 529} <= RETRIED_STATUS
    assert not {200, 301, 400, 401, 403, 404, 413, 422, 424} & RETRIED_STATUS


def test_an_excerpt_is_one_short_line() -> None:
    assert excerpt("a\n  b") == "a b"
    assert len(excerpt("x" * 10_000)) == 203 and excerpt("x" * 10_000).endswith("...")
