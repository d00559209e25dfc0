"""The policy: features of a rollout, one optimiser step per update, weights for vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.upstream.actors import log_to_file, plain_class
from openrlhf_maestro.upstream.device import worker_device
from openrlhf_maestro.upstream.patches import prepare_process, put_class

prepare_process()

import ray  # noqa: E402
from openrlhf.trainer.ray import ppo_actor  # noqa: E402
from openrlhf.utils import get_strategy  # noqa: E402

from openrlhf_maestro.upstream.options import openrlhf_arguments  # noqa: E402
from openrlhf_maestro.workers.forward import check_supported, token_forward  # noqa: E402
from openrlhf_maestro.workers.shards import export_shard  # noqa: E402
from openrlhf_maestro.workers.update import PolicyTrainer  # noqa: E402
from openrlhf_maestro.workers.weights import save_gathered  # noqa: E402


@dataclass
class Features:
    """What the policy says of a micro-batch of responses; everything on the CPU."""

    log_probs: Tensor  # (B, T - 1) fp32, of the response tokens at the sampling temperature; the "old" log-probs
    entropy: Tensor  # (B, T - 1) fp32 nats, at the sampling temperature
    hidden: Tensor | None  # (B, H) fp32, the Conductor's context; None where no Conductor reads it
    reference_log_prob: Tensor | None  # (B,) fp32, mean over the reference answer's tokens, temperature 1


class PolicyWorker(plain_class(ppo_actor.PolicyModelActor)):  # type: ignore[misc]
    """One rank of the policy."""

    def __init__(self, world_size: int, rank: int, master_addr: str | None, master_port: int | None) -> None:
        log_to_file(f"policy_rank{rank}")
        super().__init__(world_size, rank, master_addr, master_port)

    def init_model_from_pretrained(self, config: MaestroConfig, total_updates: int, vllm_engines: list[Any]) -> None:
        self.config = config
        put_class("openrlhf.trainer.ray.ppo_actor:ActorPPOTrainer", PolicyTrainer)
        arguments = openrlhf_arguments(config, worker_device())
        super().init_model_from_pretrained(
            get_strategy(arguments), config.actor.model_name_or_path, total_updates, vllm_engines
        )
        check_supported(self.actor.model.module)
        self.trainer.maestro = config

    @torch.no_grad()
    def features(
        self,
        sequences: Tensor,
        attention_mask: Tensor,
        action_mask: Tensor,
        with_hidden: bool,
        reference_sequences: Tensor | None,
        reference_attention_mask: Tensor | None,
        reference_mask: Tensor | None,
    ) -> Features:
        """One forward over prompt + response; a second over prompt + reasoning + reference where the latter is given.

        Shapes as in `token_forward`; the reference's tensors have their own length.
        """
        device = torch.cuda.current_device()
        self.actor.eval()
        response = token_forward(
            self.actor.model,
            sequences.to(device),
            attention_mask.to(device),
            action_mask.to(device),
            temperature=self.config.rollout.temperature,
            chunk_tokens=self.config.ds.logits_chunk_tokens,
            with_entropy=True,
            with_hidden=with_hidden,
        )
        reference_log_prob = None
        if reference_sequences is not None and reference_attention_mask is not None and reference_mask is not None:
            reference_mask = reference_mask.to(device)
            reference = token_forward(
                self.actor.model,
                reference_sequences.to(device),
                reference_attention_mask.to(device),
                reference_mask,
                temperature=1.0,
                chunk_tokens=self.config.ds.logits_chunk_tokens,
            )
            reference_log_prob = (reference.log_probs.sum(-1) / reference_mask.sum(-1)).cpu()
        self.actor.train()
        assert response.entropy is not None
        return Features(
            log_probs=response.log_probs.cpu(),
            entropy=response.entropy.cpu(),
            hidden=response.last_hidden.cpu() if response.last_hidden is not None else None,
            reference_log_prob=reference_log_prob,
        )

    def export_shard(self) -> Any:
        """An object reference to this rank's part of every parameter, for the reference's synchronisation."""
        return ray.put(export_shard(self.actor.model.module, torch.distributed.get_rank()))

    def save_weights(self, path: Path) -> None:
        """Rank 0 writes the whole policy to a safetensors file (the CPU's way to vLLM)."""
        save_gathered(self.actor.model.module, path)

    def save_state(self, folder: Path) -> None:
        """This rank's part of the policy, optimiser and schedule, by DeepSpeed."""
        self.actor.model.save_checkpoint(str(folder), tag="policy", save_latest=False)

    def load_state(self, folder: Path) -> None:
        """Raises RuntimeError where DeepSpeed finds no checkpoint."""
        loaded, _ = self.actor.model.load_checkpoint(str(folder), tag="policy")
        if loaded is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint of the policy in {folder}.")

    def hidden_size(self) -> int:
        return int(self.actor.model.module.config.hidden_size)
