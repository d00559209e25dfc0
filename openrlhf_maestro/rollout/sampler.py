"""Turns prompts into responses, in prompt order, whatever engine finishes first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import ray

from openrlhf_maestro.data.prompts import Prompt
from openrlhf_maestro.rollout.responses import Response, response_seed


class Sampler:
    """Spreads prompts over the engines; each response has a seed of its own."""

    def __init__(self, engines: Sequence[Any], *, seed: int, max_new_tokens: int, sleeping: bool = False) -> None:
        """`sleeping`: the engines give their memory back between calls (vllm.enable_sleep)."""
        self.engines = engines
        self.sleeping = sleeping
        self.seed = seed
        self.max_new_tokens = max_new_tokens

    def sample(
        self, prompts: Sequence[Prompt], *, purpose: str, step: int, n_samples: int, temperature: float
    ) -> list[list[Response]]:
        """`n_samples` responses for each prompt, in the order of `prompts`; see `stream`."""
        arrived = self.stream(prompts, purpose=purpose, step=step, n_samples=n_samples, temperature=temperature)
        return [responses for _, responses in sorted(arrived, key=itemgetter(0))]

    def stream(
        self, prompts: Sequence[Prompt], *, purpose: str, step: int, n_samples: int, temperature: float
    ) -> Iterator[tuple[int, list[Response]]]:
        """A prompt's index and its `n_samples` responses, as the engines finish them.

        Args:
            purpose: part of every response's seed, so that evaluation and training never share one.
        """
        sampling = {
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": -1,
            "max_tokens": self.max_new_tokens,
            "logprobs": 0,
            "detokenize": False,
        }
        if self.sleeping:
            ray.get([engine.wake_up.remote() for engine in self.engines])
        pending: dict[Any, int] = {}
        for index, prompt in enumerate(prompts):
            seeds = [response_seed(self.seed, purpose, step, prompt.key, sample) for sample in range(n_samples)]
            engine = self.engines[index % len(self.engines)]
            pending[engine.sample.remote(prompt.token_ids, sampling, seeds)] = index
        while pending:
            for done in ray.wait(list(pending), num_returns=1)[0]:
                yield pending.pop(done), ray.get(done)
        if self.sleeping:
            ray.get([engine.sleep.remote() for engine in self.engines])
