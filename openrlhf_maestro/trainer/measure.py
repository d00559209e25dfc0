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

    def measure(self, rollouts: Sequence[Rollout], *, with_hidden: bool) -> Measured:
        """One call on every model; those on GPUs of their own work at the same time."""
        micro_batches: list[Experience] = self.split_rollout_samples([as_experience(rollout) for rollout in rollouts])
        rows = [batch.index for batch in micro_batches]  # the responses in each, which packing by tokens reorders
        tensors = {
            "sequences": [batch.sequences for batch in micro_batches],
            "attention_mask": [batch.attention_mask for batch in micro_batches],
            "action_mask": [batch.action_mask for batch in micro_batches],
        }
        wait = self.config.train.colocate_all or self.config.train.colocate_actor_ref
        answered = self._teacher_forced(rollouts)
        branches = [ReferenceBranch.of([answered[row] for row in own]) if answered else None for own in rows]
        features = self._call(
            self.actor_model_group,
            "features",
            wait=wait,
            **tensors,
            with_hidden=[with_hidden] * len(micro_batches),
            branch=branches,
        )
        reference = preference = None
        if self.initial_model_group is not None:
            reference = self._call(self.initial_model_group, "log_probs", wait=wait, **tensors)
        if self.reward_model_group is not None:
            preference = self._call(
                self.reward_model_group,
                "score",
                wait=self.config.train.colocate_all,
                messages=[[rollouts[row].prompt.messages for row in own] for own in rows],
                responses=[[rollouts[row].text for row in own] for own in rows],
            )
        found = self._flatten_results(features, self.actor_model_group.duplicate_actors)
        ref_log_probs = None
        if reference is not None:
            ref_log_probs = self._flatten_results(reference, self.initial_model_group.duplicate_actors)
        scores = self._flatten_results(preference, self.reward_model_group.duplicate_actors) if preference else []
        back = torch.tensor([row for own in rows for row in own]).argsort()
        nll = None
        if answered:
            nll = -torch.cat([item.reference_log_prob for item in found])[back]
            nll = nll.masked_fill(torch.tensor([item is None for item in answered]), torch.inf)
        return Measured(
            tokens=TokenValues(
                mask=_stack([batch.action_mask for batch in micro_batches]).float()[back],
                log_probs=_stack([item.log_probs for item in found])[back],
                rollout_log_probs=_stack([batch.rollout_log_probs for batch in micro_batches])[back],
                entropy=_stack([item.entropy for item in found])[back],
                ref_log_probs=_stack(ref_log_probs)[back] if ref_log_probs is not None else None,
            ),
            hidden=torch.cat([item.hidden for item in found])[back] if with_hidden else None,
            reference_nll=nll,
            preference=torch.cat([item.scores for item in scores])[back] if scores else None,
            seconds={
                "perplexity": self._seconds([item.reference_s for item in found], self.actor_model_group),
                "preference": self._seconds([item.seconds for item in scores], self.reward_model_group),
            },
        )

    def _call(self, group: Any, method: str, *, wait: bool, **batched: list[Any]) -> list[Any]:
        """Dispatch a method over the group's ranks; on shared GPUs, one model at a time."""
        references: list[Any] = group.async_run_method_batch(method_name=method, **batched)
        if wait:
            ray.get(references)
            ray.get(group.async_run_method(method_name="empty_cache"))
        return references

    @staticmethod
    def _seconds(of_micro_batches: Sequence[float], group: Any) -> float:
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
