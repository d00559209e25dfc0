"""Text scores in the background: order, overlap, missing values, failures, busy time."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rewards import Component, Group, Missing, Score
from openrlhf_maestro.rewards.measured import ENTROPY
from openrlhf_maestro.trainer.scoring import BackgroundScoring

INF = math.inf


class Scorer:
    """Scores by a function; waits first where it is told to."""

    def __init__(self, function: Callable[[Group], Sequence[Score]], wait: Callable[[Group], float] = lambda _: 0.0):
        self.function = function
        self.wait = wait
        self.closed_in: str | None = None
        self.started = threading.Event()

    async def score(self, group: Group) -> Sequence[Score]:
        self.started.set()
        await asyncio.sleep(self.wait(group))
        return self.function(group)

    async def close(self) -> None:
        self.closed_in = threading.current_thread().name


def group(*responses: str) -> Group:
    return Group("p", "p", responses, responses, [[1]] * len(responses), [False] * len(responses))


def lengths(of: Group) -> list[Score]:
    return [float(len(text)) for text in of.responses]


@pytest.fixture
def start() -> Iterator[Callable[..., BackgroundScoring]]:
    started = []

    def make(**scorers: Scorer) -> BackgroundScoring:
        components = [Component(name, "none", None, scorer) for name, scorer in scorers.items()]
        components.append(Component("entropy", "group_rank", None, ENTROPY))
        started.append(BackgroundScoring(components))
        return started[-1]

    yield make
    for scoring in started:
        scoring.close()


def test_scores_are_in_the_order_of_the_groups_whatever_arrives_and_ends_first(
    start: Callable[..., BackgroundScoring],
) -> None:
    slow_for_short = Scorer(lengths, wait=lambda of: 0.2 if len(of.responses[0]) == 1 else 0.0)
    scoring = start(length=slow_for_short, half=Scorer(lambda of: [len(text) / 2 for text in of.responses]))
    scoring.submit(1, group("dddd", "eeeee"))
    scoring.submit(0, group("a", "bb"))
    found = scoring.collect()
    assert found.columns["length"].tolist() == [1.0, 2.0, 4.0, 5.0]
    assert found.columns["half"].tolist() == [0.5, 1.0, 2.0, 2.5]
    # What needs a model's output is not scored here.
    assert list(found.columns) == ["length", "half"]


def test_work_begins_when_a_group_is_submitted_and_a_second_batch_is_another(
    start: Callable[..., BackgroundScoring],
) -> None:
    scorer = Scorer(lengths)
    scoring = start(length=scorer)
    scoring.submit(0, group("a"))
    assert scorer.started.wait(5), "nothing asked for the scores yet"
    assert scoring.collect().columns["length"].tolist() == [1.0]
    scoring.submit(0, group("bbb"))
    assert scoring.collect().columns["length"].tolist() == [3.0]


def test_missing_values_are_nan_and_the_first_says_why(start: Callable[..., BackgroundScoring]) -> None:
    values: list[Score] = [0.5, -INF, Missing("no answer within 60 s"), INF, math.nan]
    scoring = start(judge=Scorer(lambda _: values), other=Scorer(lambda _: [math.nan, 1.0, 1.0, 1.0, INF]))
    scoring.submit(0, group(*"abcde"))
    found = scoring.collect()
    assert found.columns["judge"].tolist() == pytest.approx([0.5, -INF, math.nan, math.nan, math.nan], nan_ok=True)
    assert found.reasons == {"judge": "no answer within 60 s", "other": "its value is nan"}


def test_a_group_that_a_component_skips_has_no_value_and_no_reason(start: Callable[..., BackgroundScoring]) -> None:
    def never_the_first(of: Group) -> list[Score]:
        assert of.responses[0] != "a"
        return lengths(of)

    scoring = start(judge=Scorer(never_the_first), length=Scorer(lengths))
    scoring.submit(0, group("a", "bb"), skipped=["judge"])
    scoring.submit(1, group("ccc"))
    found = scoring.collect()
    assert found.columns["judge"].tolist() == pytest.approx([math.nan, math.nan, 3.0], nan_ok=True)
    assert found.columns["length"].tolist() == [1.0, 2.0, 3.0]
    assert found.reasons == {}


def test_busy_time_counts_overlapping_work_once(start: Callable[..., BackgroundScoring]) -> None:
    scoring = start(sleeper=Scorer(lengths, wait=lambda _: 0.3), quick=Scorer(lengths))
    for index in range(4):
        scoring.submit(index, group("a"))
    seconds = scoring.collect().seconds
    assert 0.3 <= seconds["sleeper"] < 0.9, "four waits of 0.3 s at the same time"
    assert seconds["quick"] < 0.2


def test_an_error_ends_the_collection_at_once(start: Callable[..., BackgroundScoring]) -> None:
    def fail(of: Group) -> list[Score]:
        raise RunError("the function failed")

    scoring = start(broken=Scorer(fail), slow=Scorer(lengths, wait=lambda _: 60.0))
    with pytest.raises(RunError, match="the function failed"):
        scoring.submit(0, group("a"))
        scoring.collect()


def test_an_error_is_raised_while_other_groups_are_still_being_sampled(start: Callable[..., BackgroundScoring]) -> None:
    def fail(of: Group) -> list[Score]:
        raise RunError("the function failed")

    broken = Scorer(fail)
    scoring = start(broken=broken)

    def sample() -> None:
        for index in range(1000):
            scoring.submit(index, group("a"))
            time.sleep(0.005)

    with pytest.raises(RunError, match="the function failed"):
        sample()


def test_a_cancelled_call_is_an_error_with_the_components_name(start: Callable[..., BackgroundScoring]) -> None:
    class Cancelled(Scorer):
        async def score(self, group: Group) -> Sequence[Score]:
            raise asyncio.CancelledError

    scoring = start(fickle=Cancelled(lengths), slow=Scorer(lengths, wait=lambda _: 60.0))
    with pytest.raises(RunError, match="reward component fickle: its function was cancelled"):
        scoring.submit(0, group("a"))
        scoring.collect()


def test_a_blocked_loop_ends_the_collection_and_does_not_stop_the_run_from_ending() -> None:
    def block(of: Group) -> list[Score]:
        time.sleep(20)
        return lengths(of)

    scoring = BackgroundScoring([Component("blocking", "none", None, Scorer(block))], silence_s=1.0)
    started_s = time.monotonic()
    scoring.submit(0, group("a"))
    with pytest.raises(RunError, match="blocking: an async function blocks"):
        scoring.collect()
    scoring.close()
    assert time.monotonic() - started_s < 19


def test_closing_ends_calls_under_way_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    scorer = Scorer(lengths, wait=lambda _: 60.0)
    scoring = BackgroundScoring([Component("slow", "none", None, scorer)])
    for index in range(3):
        scoring.submit(index, group("a"))
    assert scorer.started.wait(5)
    scoring.close()
    del scoring
    gc.collect()
    assert scorer.closed_in == "scoring"
    assert capfd.readouterr().err == ""


def test_a_wrong_number_of_scores_is_an_error(start: Callable[..., BackgroundScoring]) -> None:
    scoring = start(short=Scorer(lambda _: [1.0]))
    with pytest.raises(RunError, match="1 scores for 2 responses"):
        scoring.submit(0, group("a", "b"))
        scoring.collect()


def test_scorers_are_closed_where_they_ran() -> None:
    before = set(threading.enumerate())
    scorer = Scorer(lengths)
    scoring = BackgroundScoring([Component("length", "none", None, scorer)])
    scoring.close()
    assert scorer.closed_in == "scoring"
    assert set(threading.enumerate()) <= before
