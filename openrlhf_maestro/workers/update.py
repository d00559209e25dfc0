"""The policy's optimiser step with this project's objective, inside OpenRLHF's trainer."""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience import Experience, make_experience_batch
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer
from torch import Tensor

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.objective import (
    entropy_threshold,
    kl_loss,
    kl_per_token,
    loss_denominator,
    policy_loss,
    rollout_correction,
)
from openrlhf_maestro.upstream.device import worker_device
from openrlhf_maestro.workers.forward import token_forward
from openrlhf_maestro.workers.packing import pack


class PolicyTrainer(ActorPPOTrainer):
    """OpenRLHF's actor trainer with METHOD's objective: quantile and denominators are those of the whole update."""

    maestro: MaestroConfig

    def _init_vllm_sync_group(self, backend: str) -> None:
        if worker_device() == "cuda":
            super()._init_vllm_sync_group(backend)

    def ppo_train(self, kl_ctl: float) -> dict[str, float]:
        """Optimiser steps over the replay buffer; returns the last one's statistics, reduced over ranks."""
        items = list(self.replay_buffer.items)
        share = self.maestro.train.batch_size // self.maestro.actor_data_ranks
        updates = [self._micro_batches(items[start : start + share]) for start in range(0, len(items), share)]
        status: dict[str, float] = {}
        for _epoch in range(self.max_epochs):
            for micro_batches in updates:
                status = self._update(micro_batches, kl_ctl)
        return status

    def _micro_batches(self, items: list[Experience]) -> list[Experience]:
        """This rank's share of an update, in as many micro-batches as every other rank's."""
        budget, size = self.maestro.update_token_budget, self.maestro.train.micro_batch_size
        if budget is None:
            rows = [list(range(start, start + size)) for start in range(0, len(items), size)]
        else:
            lengths = [len(item.sequences) for item in items]
            count = torch.tensor(len(pack(lengths, budget)), device=torch.cuda.current_device())
            torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX, group=self._data_parallel)
            rows = pack(lengths, budget, int(count))
        return [make_experience_batch([items[row] for row in own]) for own in rows]

    @property
    def _data_parallel(self) -> Any:
        """The ranks that hold the same part of the model and train on other responses, this one among them."""
        return self.strategy.ds_device_mesh["dp"].get_group()

    def _update(self, micro_batches: list[Experience], beta: float) -> dict[str, float]:
        """One optimiser step over this rank's micro-batches of an update."""
        device = torch.cuda.current_device()
        objective = self.maestro.objective
        batches = [_to_device(micro_batch, device) for micro_batch in micro_batches]
        threshold = self._entropy_threshold(batches) if objective.top_entropy_quantile < 1 else None
        denominator = self._denominator(batches)
        engine = self.actor.model

        self.actor.train()
        lr = self.actor_scheduler.get_last_lr()[0]  # of this step; afterwards it is the next one's
        totals = torch.zeros(5, dtype=torch.float64, device=device)
        for number, batch in enumerate(batches, start=1):
            loss, statistics = self._loss(batch, threshold, denominator, beta)
            engine.set_gradient_accumulation_boundary(number == len(batches))
            # DeepSpeed averages over ranks; our losses are already shares of one global mean.
            engine.backward(loss * self.maestro.actor_data_ranks, scale_wrt_gas=False)
            engine.step()
            totals += statistics
        torch.distributed.all_reduce(totals, group=self._data_parallel)
        loss_sum, kl_sum, clipped, filtered, tokens = totals.tolist()
        return {
            "loss": loss_sum,
            "kl": kl_sum / max(tokens, 1),
            "clip_ratio": clipped / max(tokens, 1),
            "is_filter_ratio": filtered / max(tokens, 1),
            "grad_norm": self.strategy.get_grad_norm(self.actor),
            "lr": lr,
        }

    def _loss(
        self, batch: dict[str, Tensor], threshold: float | None, denominator: float, beta: float
    ) -> tuple[Tensor, Tensor]:
        """This micro-batch's share of the loss; for the log (loss, KL, clipped, filtered, all tokens), sums."""
        config = self.maestro
        current = token_forward(
            self.actor.model,
            batch["sequences"],
            batch["attention_mask"],
            batch["action_mask"],
            temperature=config.rollout.temperature,
            chunk_tokens=config.ds.logits_chunk_tokens,
        )
        mask = batch["loss_mask"]
        shared: dict[str, Any] = {
            "loss_type": config.objective.loss_type,
            "max_completion_length": config.rollout.max_new_tokens,
            "denominator": denominator,
        }
        eps_low, eps_high = config.actor.eps_clip_low_high
        correction = self._correction(batch)
        loss = policy_loss(
            current.log_probs,
            batch["old_log_probs"],
            batch["advantages"],
            mask,
            batch["entropy"],
            importance_sampling_level=config.objective.importance_sampling_level,
            top_entropy_quantile=config.objective.top_entropy_quantile,
            entropy_mask=config.objective.entropy_mask,
            entropy_threshold=threshold,
            eps_low=eps_low,
            eps_high=eps_high,
            correction=correction,
            **shared,
        )
        with torch.no_grad():
            ratio = self._ratio(current.log_probs - batch["old_log_probs"], mask)
            clipped = (((ratio < 1 - eps_low) | (ratio > 1 + eps_high)) * mask).sum()
            filtered = kl_sum = torch.zeros((), device=mask.device)
            if correction is not None:
                filtered = ((correction != (batch["old_log_probs"] - batch["rollout_log_probs"]).exp()) * mask).sum()
        if beta > 0:
            ref_log_probs, estimator = batch["ref_log_probs"], config.algo.kl.estimator
            kl_sum = (kl_per_token(current.log_probs.detach(), ref_log_probs, estimator) * mask).sum()
            if config.objective.kl_in == "loss":
                loss = loss + beta * kl_loss(current.log_probs, ref_log_probs, mask, estimator=estimator, **shared)
        return loss, torch.stack([loss.detach(), kl_sum, clipped, filtered, mask.sum()]).double()

    def _correction(self, batch: dict[str, Tensor]) -> Tensor | None:
        """(B, T - 1) weights for vLLM's probabilities being a little different; None where that is off."""
        options = self.maestro.algo.advantage
        if options.is_correction_level == "off":
            return None
        return rollout_correction(
            batch["old_log_probs"],
            batch["rollout_log_probs"],
            batch["action_mask"],
            level=options.is_correction_level,
            mode=options.is_correction_mode,
            gating=options.is_correction_gating,
            threshold=options.is_correction_threshold,
        )

    def _ratio(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """(B, T - 1): the ratio that the loss clips, that of the token or of its sequence."""
        objective = self.maestro.objective
        by_token = objective.entropy_mask == "token" and objective.top_entropy_quantile < 1
        if objective.importance_sampling_level == "token" or by_token:
            return log_ratio.exp()
        mean = (log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        return mean.exp().expand_as(log_ratio)

    def _denominator(self, batches: list[dict[str, Tensor]]) -> float:
        """The loss's denominator for the whole update, over all ranks."""
        local = sum(
            loss_denominator(
                batch["loss_mask"],
                loss_type=self.maestro.objective.loss_type,
                max_completion_length=self.maestro.rollout.max_new_tokens,
            )
            for batch in batches
        )
        total = torch.as_tensor(float(local), dtype=torch.float64, device=torch.cuda.current_device())
        torch.distributed.all_reduce(total, group=self._data_parallel)
        return max(float(total), 1.0)

    def _entropy_threshold(self, batches: list[dict[str, Tensor]]) -> float:
        """The entropy at and above which a token counts, over all unmasked tokens of the update on all ranks."""
        own = torch.cat([batch["entropy"][batch["loss_mask"].bool()] for batch in batches])
        everyone: list[Any] = [None] * self.maestro.actor_data_ranks
        torch.distributed.all_gather_object(everyone, own.cpu(), group=self._data_parallel)
        pooled = torch.cat(everyone)
        return float(entropy_threshold(pooled, torch.ones_like(pooled), self.maestro.objective.top_entropy_quantile))

    def broadcast_to_vllm(self) -> None:
        if worker_device() == "cuda":
            super().broadcast_to_vllm()
        else:
            raise RuntimeError("on a CPU the weights go through shared memory: call save_weights")


def _to_device(experience: Experience, device: Any) -> dict[str, Tensor]:
    """What the loss reads of a micro-batch; (B, T - 1) but for sequences and attention_mask (B, T), advantages (B,).

    The token entropies travel in `info` (a list of rows): Experience has no field for them.
    """
    width = experience.action_mask.shape[1]
    mask = experience.action_mask.to(device)
    dropped = torch.stack([torch.as_tensor(flag) for flag in experience.info["loss_dropped"]]).to(device)
    tensors = {
        "sequences": experience.sequences.to(device),
        "attention_mask": experience.attention_mask.to(device),
        "action_mask": mask,
        "loss_mask": mask.float() * (~dropped.bool()).float()[:, None],
        "old_log_probs": experience.action_log_probs.to(device),
        "rollout_log_probs": experience.rollout_log_probs.to(device),
        "advantages": torch.stack([torch.as_tensor(value) for value in experience.info["advantage"]]).to(device),
        "entropy": _rows(experience.info["token_entropy"], width).to(device),
    }
    if experience.base_action_log_probs is not None:
        tensors["ref_log_probs"] = experience.base_action_log_probs.to(device)
    return tensors


def _rows(rows: list[Tensor], width: int) -> Tensor:
    """Rows of differing length, padded with 0 or cut to (B, width)."""
    padded = torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        length = min(width, len(row))
        padded[index, :length] = row[:length]
    return padded
