"""A step's groups: sampled, scored while others are still being sampled, and, where asked for, filtered."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.data.prompts import Prompt, PromptLoader
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.trainer.batch import Rollout, Scored, as_group
from openrlhf_maestro.trainer.console import CONSOLE, TrainingConsole
from openrlhf_maestro.trainer.metrics import Stopwatch

if TYPE_CHECKING:
    from openrlhf_maestro.rollout.sampler import Sampler
    from openrlhf_maestro.trainer.experience import ExperienceMaker


@dataclass
class Collector:
    """Draws batches of prompts and turns each into scored groups."""

    config: MaestroConfig
    loader: PromptLoader
    sampler: Sampler
    maker: ExperienceMaker
    tokenizer: Any
    drawn: int  # batches of prompts that the steps done have used

    def collect(self, step: int, watch: Stopwatch, console: TrainingConsole) -> Scored | None:
        """N scored groups: those of one batch of prompts or, under dynamic filtering, those with a spread of several.

        None where the prompts are used up before N groups are found.
        """
        algo, wanted = self.config.algo, self.config.rollout.batch_size
        generator = step_generator(self.config.train.seed, step)
        parts: list[Scored] = []
        drawn, found = self.drawn, 0
        while found < wanted:
            if drawn == len(self.loader):
                return None
            if drawn - self.drawn == algo.dynamic_filtering_max_batches:
                raise RunError(
                    f"step {step}: {drawn - self.drawn} batches of prompts gave {found} groups whose rewards differ, "
                    f"and {wanted} are needed: the rewards hardly tell responses apart. Look at the last files of "
                    "rollouts/, or raise algo.dynamic_filtering_max_batches."
                )
            part = self._score(self.loader.batch(drawn), step, generator, watch, console)
            drawn += 1
            if algo.dynamic_filtering_enable:
                part = part.select((part.spread > algo.dynamic_filtering_min_spread).nonzero().flatten())
            parts.append(part)
            found += len(part.rollouts) // self.config.rollout.n_samples_per_prompt
        scored = self.maker.join(parts, wanted)
        filtered_rate = 1 - found / (wanted * (drawn - self.drawn))
        self.drawn = drawn
        return replace(scored, filtered_rate=filtered_rate)

    def _score(
        self,
        prompts: Sequence[Prompt],
        step: int,
        generator: torch.Generator,
        watch: Stopwatch,
        console: TrainingConsole,
    ) -> Scored:
        console.phase("sampling")
        with watch.phase("generation"):
            rollouts = self._sample(prompts, step)
        console.phase("scoring")
        with watch.phase("experience"):
            scored = self.maker.make(rollouts, generator)
        for name, count in zip(scored.component_names, scored.raw.isnan().sum(0).tolist(), strict=True):
            if count:
                reason = scored.missing_reasons.get(name, "a model gave no finite score")
                CONSOLE.print(f"step {step}: {name} has no value for {count} of {len(scored.raw)} responses ({reason})")
        return scored

    def _sample(self, prompts: Sequence[Prompt], step: int) -> list[Rollout]:
        """N * G responses, group by group; the text scores of a group are started when it arrives."""
        groups: list[list[Rollout]] = [[] for _ in prompts]
        arriving = self.sampler.stream(
            prompts,
            purpose="train",
            step=step,
            n_samples=self.config.rollout.n_samples_per_prompt,
            temperature=self.config.rollout.temperature,
        )
        for index, responses in arriving:
            texts = self.tokenizer.batch_decode([response.text_token_ids for response in responses])
            groups[index] = [
                Rollout(prompts[index], response, text, index) for response, text in zip(responses, texts, strict=True)
            ]
            self.maker.scoring.submit(index, as_group(groups[index], self.tokenizer))
        return [rollout for group in groups for rollout in group]


def step_generator(seed: int, step: int) -> torch.Generator:
    """The Conductor's draws of a step: they depend on the run's seed and the step alone."""
    digest = hashlib.blake2b(f"{seed}|conductor|{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
