"""Turns prompts into responses, in prompt order, whatever engine finishes first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from openrlhf_maestro.data.prompts import Prompt
from openrlhf_maestro.rollout.responses import Response, response_seed


class Sampler:
    """Spreads prompts over the engines; each response has a seed of its own."""

    def __init__(self, engines: Sequence[Any], *, seed: int, max_new_tokens: int) -> None:
        self.engines = engines
        self.seed = seed
        self.max_new_tokens = max_new_tokens

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        purpose: str,
        step: int,
        n_samples: int,
        temperature: float,
        on_done: Callable[[int], None] = lambda _finished: None,
    ) -> list[list[Response]]:
        """`n_samples` responses for each prompt, in the order of `prompts`.

        Args:
            purpose: part of every response's seed, so that evaluation and training never share one.
            on_done: called with the number of prompts finished so far.
        """
        sampling = {
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": -1,
            "max_tokens": self.max_new_tokens,
            "logprobs": 0,
            "detokenize": False,
        }
        pending = {}
        for index, prompt in enumerate(prompts):
            seeds = [
                response_seed(self.seed, purpose, step, f"{prompt.id}#{prompt.row}", sample)
                for sample in range(n_samples)
            ]
            engine = self.engines[index % len(self.engines)]
            pending[engine.sample.remote(prompt.token_ids, sampling, seeds)] = index
        results: list[list[Response]] = [[] for _ in prompts]
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0.05)
            for reference in ready:
                results[pending.pop(reference)] = ray.get(reference)
            on_done(len(prompts) - len(pending))
        return results
