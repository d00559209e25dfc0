"""The order of sampled responses and their seeds, whatever engine is done first. Ray and the engines are stand-ins."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from openrlhf_maestro.rollout.responses import response_seed

MODULE = "openrlhf_maestro.rollout.sampler"


class FakeEngine:
    """Remembers what it was asked; its answers are references that `FakeRay` resolves."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[tuple[list[int], dict[str, Any], list[int]]] = []
        self.sample = SimpleNamespace(remote=self._sample)

    def _sample(self, prompt: list[int], sampling: dict[str, Any], seeds: list[int]) -> tuple[Any, ...]:
        self.calls.append((prompt, sampling, seeds))
        return (tuple(prompt), tuple(seeds), self.name)


class FakeRay(ModuleType):
    """Whatever was asked for last is done first."""

    def __init__(self) -> None:
        super().__init__("ray")

    @staticmethod
    def wait(references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[-num_returns:], references[:-num_returns]

    @staticmethod
    def get(reference: tuple[Any, ...]) -> list[Any]:
        prompt, seeds, engine = reference
        return [(prompt, seed, engine) for seed in seeds]


@pytest.fixture
def sampler_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE).Sampler
    del sys.modules[MODULE]


def prompts(count: int) -> list[Any]:
    return [SimpleNamespace(key=f"row{index}#{index}", token_ids=[index, 7]) for index in range(count)]


def sample(sampler: Any, count: int, **changes: Any) -> list[list[Any]]:
    settings: dict[str, Any] = {"purpose": "train", "step": 2, "n_samples": 3, "temperature": 0.8}
    groups: list[list[Any]] = sampler.sample(prompts(count), **settings | changes)
    return groups


def test_responses_are_in_prompt_order_and_sample_order(sampler_class: Any) -> None:
    engines = [FakeEngine("first"), FakeEngine("second")]
    groups = sample(sampler_class(engines, seed=3, max_new_tokens=16), 5)
    assert [[response[0] for response in group] for group in groups] == [[(index, 7)] * 3 for index in range(5)]
    for index, group in enumerate(groups):
        expected = [response_seed(3, "train", 2, f"row{index}#{index}", number) for number in range(3)]
        assert [response[1] for response in group] == expected
    assert [len(engine.calls) for engine in engines] == [3, 2]


def test_groups_come_as_they_are_done(sampler_class: Any) -> None:
    settings: dict[str, Any] = {"purpose": "train", "step": 2, "n_samples": 1, "temperature": 0.8}
    arriving = sampler_class([FakeEngine("only")], seed=3, max_new_tokens=16).stream(prompts(3), **settings)
    assert [(index, group[0][0]) for index, group in arriving] == [(2, (2, 7)), (1, (1, 7)), (0, (0, 7))]


def test_seeds_do_not_depend_on_the_engines_or_the_other_prompts(sampler_class: Any) -> None:
    def seeds(engines: int, count: int, **changes: Any) -> list[Any]:
        sampler = sampler_class([FakeEngine(str(n)) for n in range(engines)], seed=3, max_new_tokens=16)
        return [response[1] for response in sample(sampler, count, **changes)[0]]

    assert seeds(1, 1) == seeds(3, 7)
    assert not set(seeds(1, 1)) & set(seeds(1, 1, step=3))
    assert not set(seeds(1, 1)) & set(seeds(1, 1, purpose="eval"))


def test_what_vllm_is_asked_for(sampler_class: Any) -> None:
    engine = FakeEngine("only")
    sample(sampler_class([engine], seed=3, max_new_tokens=16), 1, temperature=0.5)
    prompt, sampling, seeds = engine.calls[0]
    assert prompt == [0, 7] and len(set(seeds)) == 3
    assert (sampling["temperature"], sampling["max_tokens"]) == (0.5, 16)
    # The trainer's log-probs are of the whole distribution: nothing may cut it, and the sampled token's is needed.
    assert (sampling["top_p"], sampling["top_k"], sampling["logprobs"]) == (1.0, -1, 0)


def test_no_prompts(sampler_class: Any) -> None:
    assert sample(sampler_class([FakeEngine("only")], seed=3, max_new_tokens=16), 0) == []
