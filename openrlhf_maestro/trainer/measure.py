"""What the models say of a step's responses: one call on each, every rank running as many forwards as the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from torch import Tensor

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.rewards import teacher_forced
from openrlhf_maestro.rewards.teacher_forcing import ReferenceBranch, TeacherForced
from openrlhf_maestro.trainer.batch import Rollout, TokenValues
from openrlhf_maestro.trainer.workers import Workers
from openrlhf_maestro.workers.packing import pack_for_ranks


@dataclass
class Measured:
    """Every model's output for the B responses of a batch, in the order of the rollouts."""

    tokens: TokenValues
    hidden: Tensor | None  # (B, H) fp32
    reference_nll: Tensor | None  # (B,) fp32; +inf where the response is at fault
    preference: Tensor | None  # (B,) fp32
    seconds: dict[str, float]  # by kind of component, of the forwards made for it alone


class ModelCalls(RemoteExperienceMaker):
    """OpenRLHF's experience maker as far as it splits a batch into micro-batches and calls the actor groups."""

    def __init__(self, config: MaestroConfig, workers: Workers, tokenizer: Any, arguments: SimpleNamespace) -> None:
        super().__init__(
            workers.policy,
            None,
            workers.preference,
            workers.reference,
            None,
            SimpleNamespace(args=arguments),
            tokenizer,
        )
        self.config = config

    def split_rollout_samples(self, rollout_samples: list[Experience]) -> list[Experience]:
        """Micro-batches by number of responses as upstream; by tokens, padding counted, for every model's ranks."""
        budget = self.config.scoring_token_budget
        if budget is None:
            batches: list[Experience] = super().split_rollout_samples(rollout_samples)
            return batches
        lengths = [int(sample.total_length) for sample in rollout_samples]
        for index, sample in enumerate(rollout_samples):
            sample.index = [index]
        return [
            Experience.concat_experiences([rollout_samples[row] for row in rows], self.tokenizer.pad_token_id)
            for rows in pack_for_ranks(lengths, budget, self.config.scoring_ranks)
        ]

    def measure(self, rollouts: Sequence[Rollout], *, with_hidden: bool) -> Measured:
        """One call on every model; those on GPUs of their own work at the same time."""
        answered = self._teacher_forced(rollouts)
        micro_batches = self.split_rollout_samples(self._samples(rollouts, answered))
        rows = [batch.index for batch in micro_batches]  # the responses in each, which packing by tokens reorders
        tensors = {
            "sequences": [batch.sequences for batch in micro_batches],
            "attention_mask": [batch.attention_mask for batch in micro_batches],
            "action_mask": [batch.action_mask for batch in micro_batches],
        }
        policy = self._call(
            self.actor_model_group,
            "features",
            **tensors,
            with_hidden=[with_hidden] * len(micro_batches),
            branch=[ReferenceBranch.of([answered[row] for row in own]) if answered else None for own in rows],
        )
        reference = self._call(self.initial_model_group, "log_probs", **tensors)
        preference = self._call(
            self.reward_model_group,
            "score",
            messages=[[rollouts[row].prompt.messages for row in own] for own in rows],
            responses=[[rollouts[row].text for row in own] for own in rows],
        )
        features = self._results(self.actor_model_group, policy)
        ref_log_probs = self._results(self.initial_model_group, reference)
        scores = self._results(self.reward_model_group, preference)
        back = torch.tensor([row for own in rows for row in own]).argsort()
        return Measured(
            tokens=TokenValues(
                mask=_stack([batch.action_mask for batch in micro_batches]).float()[back],
                log_probs=_stack([item.log_probs for item in features])[back],
                rollout_log_probs=_stack([batch.rollout_log_probs for batch in micro_batches])[back],
                entropy=_stack([item.entropy for item in features])[back],
                ref_log_probs=_stack(ref_log_probs)[back] if ref_log_probs else None,
            ),
            hidden=torch.cat([item.hidden for item in features])[back] if with_hidden else None,
            reference_nll=_reference_nll(features, answered, back) if answered else None,
            preference=torch.cat([item.scores for item in scores])[back] if scores else None,
            seconds={
                "perplexity": self._seconds(self.actor_model_group, [item.reference_s for item in features]),
                "preference": self._seconds(self.reward_model_group, [item.seconds for item in scores]),
            },
        )

    def _samples(self, rollouts: Sequence[Rollout], answered: Sequence[TeacherForced | None]) -> list[Experience]:
        samples = [as_experience(rollout) for rollout in rollouts]
        if self.config.perplexity is not None and self.config.perplexity.shared_forward:
            for sample, reference in zip(samples, answered, strict=True):
                sample.total_length += len(reference.token_ids) if reference is not None else 0
        return samples

    def _call(self, group: Any, method: str, **batched: list[Any]) -> list[Any]:
        """Dispatch a method over the group's ranks; on shared GPUs, one model at a time. Nothing without the group."""
        if group is None:
            return []
        references: list[Any] = group.async_run_method_batch(method_name=method, **batched)
        train = self.config.train
        if train.colocate_all or (train.colocate_actor_ref and group is not self.reward_model_group):
            ray.get(references)
            ray.get(group.async_run_method(method_name="empty_cache"))
        return references

    def _results(self, group: Any, references: list[Any]) -> list[Any]:
        """One a micro-batch, in their order; the ranks that share a layer all return the same."""
        results: list[Any] = self._flatten_results(references, group.duplicate_actors) if references else []
        return results

    @staticmethod
    def _seconds(group: Any, of_micro_batches: Sequence[float]) -> float:
        """The ranks work side by side: their mean."""
        ranks = len(group._actor_handlers) // group.duplicate_actors if group is not None else 1
        return sum(of_micro_batches) / ranks

    def _teacher_forced(self, rollouts: Sequence[Rollout]) -> list[TeacherForced | None]:
        """The reference answer after each response's reasoning; empty where no component reads it."""
        component = self.config.perplexity
        if component is None:
            return []
        encode = lambda text: self.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
        return [
            teacher_forced(
                rollout.prompt.token_ids,
                rollout.response.text_token_ids,
                encode(component.parameter("answer_prefix", rollout.prompt.datasource)),
                encode(rollout.prompt.reference),
                decode=self.tokenizer.decode,
                max_len=self.config.data.max_len,
            )
            for rollout in rollouts
        ]


def as_experience(rollout: Rollout) -> Experience:
    """A batch of one: prompt + response, with vLLM's log-probs at the places that predict the response."""
    prompt, response = rollout.prompt.token_ids, rollout.response
    ids = [*prompt, *response.token_ids]
    action_mask = torch.zeros(1, len(ids) - 1, dtype=torch.long)
    action_mask[0, len(prompt) - 1 :] = 1
    rollout_log_probs = torch.zeros(1, len(ids) - 1)
    rollout_log_probs[0, len(prompt) - 1 :] = torch.tensor(response.log_probs)
    return Experience(
        sequences=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        action_mask=action_mask,
        rollout_log_probs=rollout_log_probs,
        response_length=torch.tensor([len(response.token_ids)]),
        total_length=torch.tensor([len(ids)]),
        truncated=torch.tensor([response.truncated]),
    )


def _stack(batches: Sequence[Tensor]) -> Tensor:
    """(b, t) tensors -> (B, longest t), padded with 0."""
    longest = max(batch.shape[1] for batch in batches)
    return torch.cat([torch.nn.functional.pad(batch, (0, longest - batch.shape[1])) for batch in batches])


def _reference_nll(features: Sequence[Any], answered: Sequence[TeacherForced | None], back: Tensor) -> Tensor:
    """(B,) mean over the reference's tokens; +inf where the response is at fault."""
    nll = -torch.cat([item.reference_log_prob for item in features])[back]
    return nll.masked_fill(torch.tensor([item is None for item in answered]), torch.inf)
