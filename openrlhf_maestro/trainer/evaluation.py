"""Held-out accuracy inside the training process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, tensor

from openrlhf_maestro.config.sections import EvalSection
from openrlhf_maestro.data.prompts import Prompt
from openrlhf_maestro.data.tasks import check
from openrlhf_maestro.rollout.sampler import Sampler
from openrlhf_maestro.trainer.batch import Rollout
from openrlhf_maestro.trainer.run_dir import RunDir

OVERALL = "overall"


def rule_verdicts(rollouts: Sequence[Rollout]) -> Tensor:
    """(B,) 1.0 where the bundled task's rule says that the response is right, else 0.0."""
    return tensor([float(_is_right(rollout.prompt, rollout.text)) for rollout in rollouts])


class Evaluator:
    """Samples answers to the held-out prompts and counts the right ones.

    Every evaluation of a run uses the same sampling seeds, so that two of them differ by the policy alone.
    """

    def __init__(
        self, config: EvalSection, prompts: Sequence[Prompt], sampler: Sampler, tokenizer: Any, run_dir: RunDir
    ) -> None:
        self.config = config
        self.prompts = prompts
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.run_dir = run_dir

    def evaluate(self, step: int) -> dict[str, tuple[int, int]]:
        """(right, asked) by data source and overall; every response goes to evaluations/."""
        groups = self.sampler.sample(
            self.prompts,
            purpose="eval",
            step=0,
            n_samples=self.config.n_samples_per_prompt,
            temperature=self.config.temperature,
        )
        asked = [(prompt, response) for prompt, group in zip(self.prompts, groups, strict=True) for response in group]
        texts = self.tokenizer.batch_decode([response.text_token_ids for _, response in asked])
        right = [_is_right(prompt, text) for (prompt, _), text in zip(asked, texts, strict=True)]
        self.run_dir.write_evaluation(
            step,
            {
                "step": [step] * len(asked),
                "id": [prompt.id for prompt, _ in asked],
                "datasource": [prompt.datasource for prompt, _ in asked],
                "prompt": [prompt.text for prompt, _ in asked],
                "response": texts,
                "reference": [prompt.reference for prompt, _ in asked],
                "right": right,
            },
        )
        counts: dict[str, tuple[int, int]] = {}
        for source in [*sorted({prompt.datasource for prompt in self.prompts}), OVERALL]:
            verdicts = [ok for (prompt, _), ok in zip(asked, right, strict=True) if source in (OVERALL, prompt.datasource)]
            counts[source] = (sum(verdicts), len(verdicts))
        return counts


def evaluation_metrics(counts: dict[str, tuple[int, int]]) -> dict[str, float]:
    """`eval/<datasource>/accuracy` and `eval/<datasource>/n`."""
    accuracy = {f"eval/{source}/accuracy": right / asked for source, (right, asked) in counts.items()}
    return accuracy | {f"eval/{source}/n": asked for source, (_, asked) in counts.items()}


def _is_right(prompt: Prompt, text: str) -> bool:
    return check(prompt.datasource, prompt.text, prompt.reference or "", text)
