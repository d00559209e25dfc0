"""From responses to what the policy learns from: features, component rewards, weights, scalar reward, advantages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from torch import Tensor

from openrlhf_maestro.conductor import Orchestrator
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.objective import constant_groups, entropy_threshold, group_advantages, kl_per_token
from openrlhf_maestro.rewards import (
    Component,
    Features,
    normalize,
    scalarize,
    score_components,
    summarize,
    teacher_forced,
)
from openrlhf_maestro.trainer.batch import Rollout, Scored
from openrlhf_maestro.trainer.workers import Workers

Verdicts = Callable[[Sequence[Rollout]], Tensor]


@dataclass
class _Measured:
    """Every model's output for the B responses of a step, right-padded to one width T - 1."""

    rollout_log_probs: Tensor  # (B, T - 1) fp32, vLLM's
    action_mask: Tensor  # (B, T - 1)
    log_probs: Tensor  # (B, T - 1) fp32, the trainer's
    entropy: Tensor  # (B, T - 1) fp32
    hidden: Tensor | None  # (B, H) fp32
    reference_nll: Tensor | None  # (B,) fp32; +inf where the response is at fault
    ref_log_probs: Tensor | None  # (B, T - 1) fp32
    preference: Tensor | None  # (B,) fp32


class ExperienceMaker(RemoteExperienceMaker):
    """OpenRLHF's experience maker with a multi-reward scorer in place of the remote reward, and the Conductor."""

    def __init__(
        self,
        config: MaestroConfig,
        workers: Workers,
        tokenizer: Any,
        components: list[Component],
        orchestrator: Orchestrator,
        verdicts: Verdicts | None,
        arguments: SimpleNamespace,
    ) -> None:
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
        self.components = components
        self.orchestrator = orchestrator
        self.verdicts = verdicts
        self.needs = {need for component in components for need in component.needs}

    def make(self, rollouts: list[Rollout], generator: torch.Generator) -> tuple[list[Experience], Scored]:
        """Score the rollouts of a step (METHOD section 1, steps 2 to 6).

        Args:
            rollouts: N * G, group by group.
            generator: the Conductor's draws.

        Returns:
            Micro-batches for the policy's update, in order, and the step's record.
        """
        samples = [_as_experience(rollout) for rollout in rollouts]
        micro_batches = self.split_rollout_samples(samples)
        measured = self._measure(micro_batches, rollouts)
        scored = self._score(rollouts, measured, generator)
        self._attach(micro_batches, measured, scored)
        return micro_batches, scored

    # ── models ──

    def _measure(self, micro_batches: list[Experience], rollouts: list[Rollout]) -> _Measured:
        """One call on every model; those on GPUs of their own work at the same time."""
        tensors = {
            "sequences": [batch.sequences for batch in micro_batches],
            "attention_mask": [batch.attention_mask for batch in micro_batches],
            "action_mask": [batch.action_mask for batch in micro_batches],
        }
        wait = self.config.train.colocate_all or self.config.train.colocate_actor_ref
        answered = self._teacher_forced(rollouts) if "reference_nll" in self.needs else [None] * len(rollouts)
        policy = self._call(
            self.actor_model_group,
            "features",
            wait=wait,
            **tensors,
            with_hidden=[self.orchestrator.needs_hidden] * len(micro_batches),
            **self._reference_branch(answered, rollouts),
        )
        reference = preference = None
        if self.initial_model_group is not None:
            reference = self._call(self.initial_model_group, "log_probs", wait=wait, **tensors)
        if self.reward_model_group is not None:
            preference = self._call(
                self.reward_model_group,
                "score",
                wait=self.config.train.colocate_all,
                messages=self._chunks([rollout.prompt.messages for rollout in rollouts]),
                responses=self._chunks([rollout.text for rollout in rollouts]),
            )
        features = self._flatten_results(policy, 1)
        return _Measured(
            rollout_log_probs=_stack([batch.rollout_log_probs for batch in micro_batches]),
            action_mask=_stack([batch.action_mask for batch in micro_batches]),
            log_probs=_stack([item.log_probs for item in features]),
            entropy=_stack([item.entropy for item in features]),
            hidden=torch.cat([item.hidden for item in features]) if self.orchestrator.needs_hidden else None,
            reference_nll=_reference_nll(features, answered),
            ref_log_probs=_stack(self._flatten_results(reference, 1)) if reference is not None else None,
            preference=torch.cat(self._flatten_results(preference, 1)) if preference is not None else None,
        )

    def _call(self, group: Any, method: str, *, wait: bool, **batched: list[Any]) -> list[Any]:
        """Dispatch a method over the group's ranks; on shared GPUs, one model at a time."""
        references = group.async_run_method_batch(method_name=method, **batched)
        if wait:
            ray.get(references)
            ray.get(group.async_run_method(method_name="empty_cache"))
        return references

    def _chunks(self, items: list[Any]) -> list[list[Any]]:
        size = self.config.rollout.micro_batch_size
        return [items[start : start + size] for start in range(0, len(items), size)]

    def _teacher_forced(self, rollouts: list[Rollout]) -> list[Any]:
        component = self.config.component_of_kind("perplexity")
        assert component is not None
        encode = lambda text: self.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
        prefix = encode(component.answer_prefix)
        return [
            teacher_forced(
                rollout.prompt.token_ids,
                rollout.response.text_token_ids,
                prefix,
                encode(rollout.prompt.reference),
                decode=self.tokenizer.decode,
                max_len=self.config.data.max_len,
            )
            for rollout in rollouts
        ]

    def _reference_branch(self, answered: list[Any], rollouts: list[Rollout]) -> dict[str, list[Any]]:
        """Arguments of `PolicyWorker.features` for the reference answers.

        Rows without one get a two-token stand-in whose result is not used: all ranks must run as many forwards.
        """
        if "reference_nll" not in self.needs:
            nothing = [None] * len(self._chunks(rollouts))
            return {"reference_sequences": nothing, "reference_attention_mask": nothing, "reference_mask": nothing}
        rows = [
            (item.token_ids, item.reference_start) if item is not None else (rollout.prompt.token_ids[:1] * 2, 1)
            for item, rollout in zip(answered, rollouts, strict=True)
        ]
        padded = [_pad_reference_rows(chunk, self.tokenizer.pad_token_id) for chunk in self._chunks(rows)]
        names = ("reference_sequences", "reference_attention_mask", "reference_mask")
        return {name: [item[index] for item in padded] for index, name in enumerate(names)}

    # ── rewards ──

    def _score(self, rollouts: list[Rollout], measured: _Measured, generator: torch.Generator) -> Scored:
        config, group = self.config, self.config.rollout.n_samples_per_prompt
        mask = measured.action_mask.float()
        tokens = mask.sum(-1)
        mean_entropy = (measured.entropy * mask).sum(-1) / tokens
        features = Features(
            texts=[rollout.text for rollout in rollouts],
            lengths=[len(rollout.response.token_ids) for rollout in rollouts],
            length_limits=[self._length_limits()] * len(rollouts),
            mean_entropy=mean_entropy,
            reference_nll=measured.reference_nll,
            preference=measured.preference,
            rule=self.verdicts(rollouts) if self.verdicts is not None else None,
        )
        raw = score_components(self.components, features)
        self._check_missing(raw)
        normalised = normalize(raw.view(-1, group, len(self.components)), self.components).view_as(raw)
        orchestration = self.orchestrator.weights(measured.hidden, len(rollouts), generator)
        scalar = scalarize(normalised, orchestration.weights)
        groups = scalar.view(-1, group)
        advantages = group_advantages(groups, config.objective.scale_rewards).view(-1)
        truncated = torch.tensor([rollout.response.truncated for rollout in rollouts])
        difference = (measured.rollout_log_probs - measured.log_probs).abs() * mask
        return Scored(
            rollouts=rollouts,
            component_names=[component.name for component in self.components],
            raw=raw,
            normalised=normalised,
            weights=orchestration.weights,
            probs=orchestration.probs,
            actions=orchestration.actions,
            hidden=measured.hidden,
            scalar=scalar,
            advantages=advantages,
            constant=constant_groups(groups),
            truncated=truncated,
            response_tokens=tokens.long(),
            mean_entropy=mean_entropy,
            kl=self._kl(measured, mask),
            policy_loss_tokens=self._policy_loss_tokens(measured, mask, truncated),
            logprob_diff_mean=difference.sum(-1) / tokens,
            logprob_diff_max=difference.amax(-1),
        )

    def _length_limits(self) -> tuple[float, float]:
        longest = self.config.rollout.max_new_tokens
        component = self.config.component_of_kind("length")
        if component is None:
            return longest / 2, longest
        l_max = component.l_max if component.l_max is not None else longest
        return component.l_min if component.l_min is not None else l_max / 2, l_max

    def _check_missing(self, raw: Tensor) -> None:
        limit = self.config.rewards.max_missing_rate
        for component, rate in zip(self.components, summarize(raw).missing_rate.tolist(), strict=True):
            if rate > limit:
                raise RunError(
                    f"reward component {component.name}: {rate:.0%} of this step's responses got no value, more than "
                    f"rewards.max_missing_rate ({limit:.0%}). The log of its worker in logs/ says why."
                )

    @staticmethod
    def _kl(measured: _Measured, mask: Tensor) -> Tensor | None:
        if measured.ref_log_probs is None:
            return None
        return (kl_per_token(measured.log_probs, measured.ref_log_probs) * mask).sum(-1) / mask.sum(-1)

    def _loss_dropped(self, truncated: Tensor) -> Tensor:
        return truncated if self.config.objective.mask_truncated else torch.zeros_like(truncated)

    def _policy_loss_tokens(self, measured: _Measured, mask: Tensor, truncated: Tensor) -> Tensor:
        """(B,) tokens that the policy loss counts, with the threshold of the whole step."""
        kept = mask * (~self._loss_dropped(truncated)).float()[:, None]
        quantile = self.config.objective.top_entropy_quantile
        if quantile < 1:
            kept = kept * (measured.entropy >= entropy_threshold(measured.entropy, kept, quantile)).float()
        return kept.sum(-1).long()

    # ── training ──

    def _attach(self, micro_batches: list[Experience], measured: _Measured, scored: Scored) -> None:
        """Put what the loss needs into the micro-batches, cut to each one's own width."""
        dropped = self._loss_dropped(scored.truncated)
        start = 0
        for batch in micro_batches:
            rows, width = slice(start, start + len(batch.sequences)), batch.action_mask.shape[1]
            batch.action_log_probs = measured.log_probs[rows, :width]
            if measured.ref_log_probs is not None:
                batch.base_action_log_probs = measured.ref_log_probs[rows, :width]
            batch.info = {
                "advantage": scored.advantages[rows],
                "loss_dropped": dropped[rows],
                "token_entropy": measured.entropy[rows, :width],
            }
            start += len(batch.sequences)


def _as_experience(rollout: Rollout) -> Experience:
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


def _pad_reference_rows(rows: list[tuple[list[int], int]], pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(b, T) ids, (b, T) attention mask, (b, T - 1) mask of the places that predict the reference's tokens."""
    longest = max(len(ids) for ids, _ in rows)
    sequences = torch.full((len(rows), longest), pad_token_id)
    attention_mask = torch.zeros(len(rows), longest, dtype=torch.long)
    reference_mask = torch.zeros(len(rows), longest - 1, dtype=torch.long)
    for row, (ids, start) in enumerate(rows):
        sequences[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
        reference_mask[row, start - 1 : len(ids) - 1] = 1
    return sequences, attention_mask, reference_mask


def _reference_nll(features: list[Any], answered: list[Any]) -> Tensor | None:
    """(B,) mean over the reference's tokens; +inf where the response is at fault; None where it was not measured."""
    if features[0].reference_log_prob is None:
        return None
    nll = -torch.cat([item.reference_log_prob for item in features])
    return nll.masked_fill(torch.tensor([item is None for item in answered]), torch.inf)
