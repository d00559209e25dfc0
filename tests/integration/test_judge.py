"""Component `judge` against a real vLLM server on the CPU, whose judge is an untrained tiny model."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from openrlhf_maestro.config.components import JudgeComponent
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rewards.groups import FAULT, Group, Missing, Score
from openrlhf_maestro.rewards.judge import JudgeScorer, judge_messages

pytestmark = pytest.mark.integration

KEY_VARIABLE, KEY = "JUDGE_TEST_KEY", "local"
QUESTION, REFERENCE = "How many in all: 3 owl 2 hat?", "5"
ANSWERS = ("5", "4", "a cat", "the dog calls", "There are five of them in all.")
# Every text it allows is a number that the judge accepts.
NUMBERS = {"structured_outputs": {"regex": r"0\.[0-9]{2}|1\.0"}}


@pytest.fixture
def base_url(judge_url: str) -> str:
    return judge_url


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def section(base_url: str, **options: Any) -> JudgeComponent:
    defaults = {"model": "judge", "base_url": base_url, "api_key_env": KEY_VARIABLE}
    return JudgeComponent.model_validate(defaults | options)


def scores(judge: JudgeComponent, cache: Path | None = None) -> list[Score]:
    """Of the answers and of a response out of format."""
    texts = [f"<think>count</think><answer>{answer}</answer>" for answer in ANSWERS] + ["It is 5."]
    group = Group(
        prompt=QUESTION,
        rendered_prompt=f"<|user|>{QUESTION}",
        queries=[f"<|user|>{QUESTION}{text}" for text in texts],
        responses=texts,
        token_ids=[[1]] * len(texts),
        truncated=[False] * len(texts),
        reference=REFERENCE,
    )

    async def run() -> list[Score]:
        scorer = JudgeScorer(judge, cache=cache)
        try:
            return list(await scorer.score(group))
        finally:
            await scorer.close()

    return asyncio.run(run())


def plain_reply(base_url: str, prompt: str, answer: str, extra: dict[str, Any]) -> str:
    """What the server replies to a request that is written here, without any client library."""
    messages = judge_messages(prompt, question=QUESTION, reference=REFERENCE, answer=answer)
    body = {"model": "judge", "messages": messages, "temperature": 0, "max_tokens": 16} | extra
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{base_url}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answered:
        return str(json.load(answered)["choices"][0]["message"]["content"])


def test_with_structured_outputs_the_scores_are_the_servers_numbers(
    base_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = section(base_url, extra_body=NUMBERS)
    expected = [float(plain_reply(base_url, judge.prompt, answer, NUMBERS)) for answer in ANSWERS]
    assert len(set(expected)) > 1  # else a constant would pass
    assert scores(judge, tmp_path / "judge.sqlite") == [*expected, FAULT]
    # From the file now: a key that the server refuses is not noticed.
    monkeypatch.setenv(KEY_VARIABLE, "another")
    assert scores(judge, tmp_path / "judge.sqlite") == [*expected, FAULT]
    with pytest.raises(RunError, match="status 401"):
        scores(judge)


def test_without_them_the_replies_are_no_numbers_and_the_scores_are_missing(base_url: str) -> None:
    judge = section(base_url)
    *values, last = scores(judge)
    assert last == FAULT
    for value, answer in zip(values, ANSWERS, strict=True):
        beginning = " ".join(plain_reply(base_url, judge.prompt, answer, {}).split())
        # Cut at max_tokens, most of them.
        assert isinstance(value, Missing) and value.reason.startswith("the judge's reply is ")
        assert value.reason.endswith(f": {beginning!r}")


def test_a_model_that_is_not_served_stops(base_url: str) -> None:
    with pytest.raises(RunError, match=r"component judge: .* status 404: .*another.* does not exist"):
        scores(section(base_url, model="another"))
