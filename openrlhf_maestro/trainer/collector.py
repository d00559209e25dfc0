"""A step's groups: sampled, scored while others are still being sampled, and, where asked for, filtered."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
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


@dataclass(frozen=True)
class Draws:
    """The random choices of a step, whatever number of batches it takes."""

    conductor: torch.Generator  # emphases
    anchor: torch.Generator  # groups that the anchor scores


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
        seed = self.config.train.seed
        draws = Draws(step_generator(seed, "conductor", step), step_generator(seed, "anchor", step))
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
            part = self._score(self.loader.batch(drawn), step, draws, watch, console)
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
        draws: Draws,
        watch: Stopwatch,
        console: TrainingConsole,
    ) -> Scored:
        console.phase("sampling")
        anchored = self._anchored(prompts, draws.anchor)
        with watch.phase("generation"):
            rollouts = self._sample(prompts, step, anchored)
        console.phase("scoring")
        with watch.phase("experience"):
            scored = self.maker.make(rollouts, anchored, draws.conductor)
        counts = zip(scored.component_names, scored.raw.isnan().sum(0).tolist(), strict=True)
        missing = {name: (count, len(scored.raw)) for name, count in counts}
        if self.config.anchor is not None and scored.anchor is not None:
            asked = len(anchored) * scored.group_size
            missing[self.config.anchor.label] = asked - int((~scored.anchor.isnan()).sum()), asked
        for name, (count, asked) in missing.items():
            if count:
                reason = scored.missing_reasons.get(name, "a model gave no finite score")
                CONSOLE.print(f"step {step}: {name} has no value for {count} of {asked} responses ({reason})")
        return scored

    def _anchored(self, prompts: Sequence[Prompt], generator: torch.Generator) -> set[int]:
        """The groups that the anchor scores: a share of all, of those it can score, drawn anew for every batch."""
        anchor = self.config.anchor
        if anchor is None or not self.config.conductor.reads_anchor:
            return set()
        # Less a rounding: 0.07 x 100 is a little above 7.
        count = math.ceil(self.config.conductor.anchor_share * len(prompts) - 1e-9)
        order = torch.randperm(len(prompts), generator=generator).tolist()
        known = [index for index in order if anchor.knows(prompts[index].reference, prompts[index].metadata)]
        return set(known[:count])

    def _sample(self, prompts: Sequence[Prompt], step: int, anchored: Collection[int]) -> list[Rollout]:
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
            skipped = [self.config.anchor.label] if self.config.anchor and index not in anchored else []
            self.maker.scoring.submit(index, as_group(groups[index], self.tokenizer), skipped)
        return [rollout for group in groups for rollout in group]


def step_generator(seed: int, purpose: str, step: int) -> torch.Generator:
    """The draws of a step for a purpose: they depend on the run's seed, the purpose and the step alone."""
    digest = hashlib.blake2b(f"{seed}|{purpose}|{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
