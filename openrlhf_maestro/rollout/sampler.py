"""Turns prompts into responses, in prompt order, whatever engine finishes first."""

from __future__ import annotations

from collections.abc import Sequence
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
        self,
        prompts: Sequence[Prompt],
        *,
        purpose: str,
        step: int,
        n_samples: int,
        temperature: float,
    ) -> list[list[Response]]:
        """`n_samples` responses for each prompt, in the order of `prompts`.

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
        pending = []
        for index, prompt in enumerate(prompts):
            row = f"{prompt.id}#{prompt.row}"
            seeds = [response_seed(self.seed, purpose, step, row, sample) for sample in range(n_samples)]
            engine = self.engines[index % len(self.engines)]
            pending.append(engine.sample.remote(prompt.token_ids, sampling, seeds))
        results: list[list[Response]] = ray.get(pending)
        if self.sleeping:
            ray.get([engine.sleep.remote() for engine in self.engines])
        return results
