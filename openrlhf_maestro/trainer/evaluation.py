"""Held-out verdicts inside the training process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from openrlhf_maestro.config.sections import EvalSection
from openrlhf_maestro.data.prompts import Prompt
from openrlhf_maestro.evaluation import Item, Verdicts
from openrlhf_maestro.evaluation.results import Result
from openrlhf_maestro.evaluation.tables import Summary, summarise
from openrlhf_maestro.trainer.run_dir import RunDir

if TYPE_CHECKING:
    from openrlhf_maestro.rollout.sampler import Sampler


# Of the bootstrap of mean scores: they are looked at while training, not reported.
RESAMPLES = 1000


class Evaluator:
    """Samples answers to the held-out prompts and has them judged.

    Every evaluation of a run uses the same sampling seeds, so that two of them differ by the policy alone.
    """

    def __init__(
        self,
        config: EvalSection,
        prompts: Sequence[Prompt],
        sampler: Sampler,
        tokenizer: Any,
        run_dir: RunDir,
        verdicts: Verdicts,
    ) -> None:
        self.config = config
        self.prompts = prompts
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.run_dir = run_dir
        self.verdicts = verdicts

    def evaluate(self, step: int) -> Summary:
        """What was found by data source, and overall; every response goes to evaluations/."""
        groups = self.sampler.sample(
            self.prompts,
            purpose="eval",
            step=0,
            n_samples=self.config.n_samples_per_prompt,
            temperature=self.config.temperature,
        )
        asked = [(prompt, sample) for prompt in self.prompts for sample in range(self.config.n_samples_per_prompt)]
        texts = self.tokenizer.batch_decode([response.text_token_ids for group in groups for response in group])
        results = self._judged(step, asked, texts)
        self.run_dir.write_evaluation(
            step,
            {
                "step": [step] * len(asked),
                "id": [prompt.id for prompt, _ in asked],
                "sample": [sample for _, sample in asked],
                "datasource": [prompt.datasource for prompt, _ in asked],
                "prompt": [prompt.text for prompt, _ in asked],
                "response": texts,
                "reference": [prompt.reference for prompt, _ in asked],
                "right": [result.right for result in results],
                "score": [result.score for result in results],
            },
        )
        return summarise(results, resamples=RESAMPLES)

    def _judged(self, step: int, asked: Sequence[tuple[Prompt, int]], texts: Sequence[str]) -> list[Result]:
        keys = [f"{prompt.key}#{sample}" for prompt, sample in asked]
        items = [
            # A judge's votes are kept by key, and each step has responses of its own.
            Item(f"step {step} {key}", prompt.datasource, prompt.question, prompt.reference, text)
            for key, (prompt, _), text in zip(keys, asked, texts, strict=True)
        ]
        return [
            Result(
                key=key,
                id=prompt.id,
                sample=sample,
                datasource=prompt.datasource,
                cluster=prompt.cluster(),
                right=verdict.right,
                score=verdict.score,
                votes=verdict.votes,
                problem=verdict.problem,
            )
            for key, (prompt, sample), verdict in zip(keys, asked, self.verdicts(items), strict=True)
        ]


def evaluation_metrics(summary: Summary) -> dict[str, float]:
    """`eval/<datasource>/accuracy` and `/score` where there are any, with intervals, `/n` and `/missing_rate`."""
    metrics: dict[str, float] = {}
    for row in (*summary.datasources, summary.overall):
        if row.share is not None:
            metrics[f"eval/{row.name}/accuracy"] = row.share.value
            metrics[f"eval/{row.name}/accuracy_low"] = _bound(row.share.low)
            metrics[f"eval/{row.name}/accuracy_high"] = _bound(row.share.high)
        if row.score is not None:
            metrics[f"eval/{row.name}/score"] = row.score.value
            metrics[f"eval/{row.name}/score_low"] = _bound(row.score.low)
            metrics[f"eval/{row.name}/score_high"] = _bound(row.score.high)
        metrics[f"eval/{row.name}/n"] = row.n or row.scored
        metrics[f"eval/{row.name}/missing_rate"] = row.missing / row.responses
    return metrics


def _bound(value: float | None) -> float:
    """NaN where a single prompt cannot say how much it varies."""
    return math.nan if value is None else value
