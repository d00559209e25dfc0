"""Held-out accuracy inside the training process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openrlhf_maestro.config.sections import EvalSection
from openrlhf_maestro.data.prompts import Prompt
from openrlhf_maestro.evaluation import Accuracy, accuracy_by_datasource, rule_verdicts
from openrlhf_maestro.trainer.run_dir import RunDir

if TYPE_CHECKING:
    from openrlhf_maestro.rollout.sampler import Sampler

OVERALL = "overall"


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

    def evaluate(self, step: int) -> dict[str, Accuracy]:
        """Accuracy by data source, and overall as the last; every response goes to evaluations/."""
        groups = self.sampler.sample(
            self.prompts,
            purpose="eval",
            step=0,
            n_samples=self.config.n_samples_per_prompt,
            temperature=self.config.temperature,
        )
        prompts = [prompt for prompt, group in zip(self.prompts, groups, strict=True) for _ in group]
        texts = self.tokenizer.batch_decode([response.text_token_ids for group in groups for response in group])
        right = _verdicts(prompts, texts)
        self.run_dir.write_evaluation(
            step,
            {
                "step": [step] * len(prompts),
                "id": [prompt.id for prompt in prompts],
                "datasource": [prompt.datasource for prompt in prompts],
                "prompt": [prompt.text for prompt in prompts],
                "response": texts,
                "reference": [prompt.reference for prompt in prompts],
                "right": right,
            },
        )
        by_source = accuracy_by_datasource([prompt.datasource for prompt in prompts], right)
        return by_source | {OVERALL: Accuracy(sum(right), len(right))}


def evaluation_metrics(accuracies: Mapping[str, Accuracy]) -> dict[str, float]:
    """`eval/<datasource>/accuracy` and `eval/<datasource>/n`."""
    shares = {f"eval/{source}/accuracy": accuracy.share for source, accuracy in accuracies.items()}
    return shares | {f"eval/{source}/n": accuracy.total for source, accuracy in accuracies.items()}


def _verdicts(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[bool]:
    rows = [
        {"datasource": prompt.datasource, "prompt": prompt.text, "reference": prompt.reference or ""}
        for prompt in prompts
    ]
    return rule_verdicts(rows, texts)
