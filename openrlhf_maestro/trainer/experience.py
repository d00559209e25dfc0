"""From responses to what the policy learns from: component rewards, weights, scalar reward, advantages."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from torch import Tensor

from openrlhf_maestro.conductor import Orchestrator
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.objective import constant_groups, entropy_threshold, group_advantages, kl_per_token, reward_kl
from openrlhf_maestro.rewards import (
    Component,
    Features,
    MeasuredScorer,
    apply_gates,
    normalize,
    scalarize,
    summarize,
)
from openrlhf_maestro.trainer.batch import Rollout, Scored, TokenValues, concatenate, first_equals
from openrlhf_maestro.trainer.measure import Measured, ModelCalls, as_experience
from openrlhf_maestro.trainer.scoring import BackgroundScoring, TextScores
from openrlhf_maestro.workers.packing import deal


@dataclass
class ExperienceMaker:
    """OpenRLHF's experience maker with a multi-reward scorer in place of the remote reward, and the Conductor."""

    config: MaestroConfig
    models: ModelCalls
    components: list[Component]  # in the order of the configuration, the anchor among them
    scoring: BackgroundScoring
    orchestrator: Orchestrator

    def make(self, rollouts: list[Rollout], anchored: Collection[int], generator: torch.Generator) -> Scored:
        """Score whole groups (METHOD section 1, steps 2 to 6); their text scores are under way already.

        Args:
            rollouts: group by group.
            anchored: the groups that the anchor scores.
            generator: the Conductor's draws.
        """
        measured = self.models.measure(rollouts, with_hidden=self.orchestrator.needs_hidden)
        start_s = time.perf_counter()
        text = self.scoring.collect()
        wait_s = time.perf_counter() - start_s
        raw, reward_s = self._raw(rollouts, measured, text)
        asked = torch.tensor([rollout.group in anchored for rollout in rollouts])
        self._check_missing(raw, asked, text.reasons)
        return self._scored(rollouts, measured, raw, asked, generator, text.reasons, reward_s, wait_s)

    def join(self, parts: Sequence[Scored], groups: int) -> Scored:
        """One step's record: the first so many groups of several batches."""
        group = self.config.rollout.n_samples_per_prompt
        whole = concatenate(parts, group).select(torch.arange(groups * group))
        return replace(whole, policy_loss_tokens=self._policy_loss_tokens(whole.tokens, whole.truncated))

    def experiences(self, scored: Scored) -> list[Experience]:
        """What the loss reads: one batch a data-parallel rank of the policy, in order."""
        samples = [as_experience(rollout) for rollout in scored.rollouts]
        lengths = [int(sample.total_length) for sample in samples]
        ranks = self.config.actor_data_ranks
        order = torch.tensor(deal(lengths, self.config.train.batch_size, ranks))
        return [self._experience(samples, scored, rows) for rows in order.chunk(ranks)]

    def _experience(self, samples: Sequence[Experience], scored: Scored, rows: Tensor) -> Experience:
        batch = Experience.concat_experiences(
            [samples[row] for row in rows.tolist()], self.models.tokenizer.pad_token_id
        )
        width = batch.action_mask.shape[1]
        batch.action_log_probs = scored.tokens.log_probs[rows, :width]
        if scored.tokens.ref_log_probs is not None:
            batch.base_action_log_probs = scored.tokens.ref_log_probs[rows, :width]
        batch.info = {
            "advantage": scored.advantages[rows],
            "loss_dropped": self._loss_dropped(scored.truncated[rows]),
            "token_entropy": scored.tokens.entropy[rows, :width],
        }
        return batch

    def _raw(
        self, rollouts: Sequence[Rollout], measured: Measured, text: TextScores
    ) -> tuple[Tensor, dict[str, float]]:
        """(B, K) raw scores after the gates, the anchor's a column of them, and each component's seconds."""
        features = Features(
            texts=[rollout.text for rollout in rollouts],
            lengths=[len(rollout.response.token_ids) for rollout in rollouts],
            mean_entropy=_mean(measured.tokens.entropy, measured.tokens.mask),
            reference_nll=measured.reference_nll,
            preference=measured.preference,
        )
        equals = first_equals(rollouts)
        columns, seconds = [], {}
        for component, section in zip(self.components, self.config.rewards.components, strict=True):
            if isinstance(component.scorer, MeasuredScorer):
                columns.append(component.scorer.score(features)[equals])
                seconds[component.name] = measured.seconds.get(section.kind, 0.0)
            else:
                columns.append(text.columns[component.name])
                seconds[component.name] = text.seconds[component.name]
        return apply_gates(torch.stack(columns, dim=-1), self.components), seconds

    def _scored(
        self,
        rollouts: list[Rollout],
        measured: Measured,
        raw: Tensor,
        asked: Tensor,
        generator: torch.Generator,
        reasons: dict[str, str],
        reward_s: dict[str, float],
        wait_s: float,
    ) -> Scored:
        group, tokens = self.config.rollout.n_samples_per_prompt, measured.tokens
        of_anchor = self._is_anchor
        anchor = None
        if of_anchor.any():
            anchor = raw[:, of_anchor].squeeze(1)
            anchor = anchor.masked_fill(~asked | anchor.isposinf(), torch.nan)
        components = [part for part, is_anchor in zip(self.components, of_anchor, strict=True) if not is_anchor]
        raw = raw[:, ~of_anchor]
        normalised = normalize(raw.view(-1, group, len(components)), components).view_as(raw)
        orchestration = self.orchestrator.weights(measured.hidden, len(rollouts), generator)
        truncated = torch.tensor([rollout.response.truncated for rollout in rollouts])
        penalty = self._kl_penalty(measured, truncated)
        penalty = penalty[first_equals(rollouts)] if penalty is not None else None
        scalar = scalarize(normalised, orchestration.weights) - (penalty if penalty is not None else 0.0)
        groups = scalar.view(-1, group)
        difference = (tokens.rollout_log_probs - tokens.log_probs).abs() * tokens.mask
        return Scored(
            rollouts=rollouts,
            component_names=self.config.component_names,
            raw=raw,
            normalised=normalised,
            anchor=anchor,
            weights=orchestration.weights,
            probs=orchestration.probs,
            actions=orchestration.actions,
            hidden=measured.hidden,
            scalar=scalar,
            advantages=group_advantages(groups, self.config.objective.scale_rewards).view(-1),
            constant=constant_groups(groups).repeat_interleave(group),
            spread=_spread(groups).repeat_interleave(group),
            truncated=truncated,
            response_tokens=tokens.mask.sum(-1).long(),
            mean_entropy=_mean(tokens.entropy, tokens.mask),
            kl=self._mean_kl(measured),
            kl_penalty=penalty,
            policy_loss_tokens=self._policy_loss_tokens(tokens, truncated),
            logprob_diff_mean=_mean(difference, tokens.mask),
            logprob_diff_max=difference.amax(-1),
            log_prob_mean=_mean(tokens.log_probs, tokens.mask),
            tokens=tokens,
            missing_reasons=reasons,
            reward_s=reward_s,
            reward_wait_s=wait_s,
        )

    def _loss_dropped(self, truncated: Tensor) -> Tensor:
        return truncated & self.config.objective.mask_truncated

    def _policy_loss_tokens(self, tokens: TokenValues, truncated: Tensor) -> Tensor:
        """(B,) tokens that the policy loss counts, with the threshold of the whole step."""
        kept = tokens.mask * (~self._loss_dropped(truncated)).float()[:, None]
        quantile = self.config.objective.top_entropy_quantile
        if quantile < 1:
            kept = kept * (tokens.entropy >= entropy_threshold(tokens.entropy, kept, quantile)).float()
        return kept.sum(-1).long()

    @property
    def _is_anchor(self) -> Tensor:
        """(K + 1,) or (K,) bool: which of the components is the anchor."""
        return torch.tensor([section.anchor for section in self.config.rewards.components])

    def _check_missing(self, raw: Tensor, asked: Tensor, reasons: Mapping[str, str]) -> None:
        limit = self.config.rewards.max_missing_rate
        for k, (component, section) in enumerate(zip(self.components, self.config.rewards.components, strict=True)):
            column = raw[asked, k] if section.anchor else raw[:, k]
            if len(column) and (rate := float(summarize(column[:, None]).missing_rate)) > limit:
                reason = reasons.get(component.name, "a model gave no finite score; see the workers' logs in logs/")
                raise RunError(
                    f"reward component {component.name}: {rate:.0%} of the responses got no value, more than "
                    f"rewards.max_missing_rate ({limit:.0%}). The first: {reason}"
                )

    def _mean_kl(self, measured: Measured) -> Tensor | None:
        tokens = measured.tokens
        if tokens.ref_log_probs is None:
            return None
        kl = kl_per_token(tokens.log_probs, tokens.ref_log_probs, self.config.algo.kl.estimator)
        return _mean(kl, tokens.mask)

    def _kl_penalty(self, measured: Measured, truncated: Tensor) -> Tensor | None:
        """(B,) beta times the KL of the whole response, where it belongs to the reward; 0 where that has no loss."""
        tokens, kl = measured.tokens, self.config.algo.kl
        if tokens.ref_log_probs is None or self.config.objective.kl_in != "reward":
            return None
        kept = tokens.mask * (~self._loss_dropped(truncated)).float()[:, None]
        return kl.init_coef * reward_kl(tokens.log_probs, tokens.ref_log_probs, kept, kl.estimator)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T - 1), (B, T - 1) -> (B,)"""
    return (values * mask).sum(-1) / mask.sum(-1)


def _spread(groups: Tensor) -> Tensor:
    """(N, G) rewards, NaN where missing -> (N,) largest less smallest; negative where none is present."""
    missing = groups.isnan()
    return groups.masked_fill(missing, -torch.inf).amax(1) - groups.masked_fill(missing, torch.inf).amin(1)
