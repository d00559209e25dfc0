"""The policy: features of a rollout, one optimiser step per update, weights for vLLM."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf_maestro.conductor.context import context_module
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.rewards import ReferenceBranch
from openrlhf_maestro.upstream.actors import log_to_file, plain_class
from openrlhf_maestro.upstream.device import worker_device
from openrlhf_maestro.upstream.patches import prepare_process, put_class

prepare_process()

from openrlhf.trainer.ray import ppo_actor  # noqa: E402
from openrlhf.utils import get_strategy  # noqa: E402

from openrlhf_maestro.upstream.options import openrlhf_arguments  # noqa: E402
from openrlhf_maestro.workers.forward import TokenForward, check_shared_forward, check_supported, token_forward  # noqa: E402
from openrlhf_maestro.workers.shards import check_heads, export_shards  # noqa: E402
from openrlhf_maestro.workers.update import PolicyTrainer  # noqa: E402
from openrlhf_maestro.workers.weights import save_gathered  # noqa: E402


@dataclass
class Features:
    """What the policy says of a micro-batch of responses; everything on the CPU."""

    log_probs: Tensor  # (B, T - 1) fp32, of the response tokens at the sampling temperature; the "old" log-probs
    entropy: Tensor  # (B, T - 1) fp32 nats, at the sampling temperature
    hidden: Tensor | None  # (B, H) fp32, the Conductor's context; None where no Conductor reads it
    reference_log_prob: Tensor | None  # (B,) fp32, mean over the reference's tokens, temperature 1; NaN without one
    reference_s: float  # seconds of the reference answers' own forward; 0 where they share the response's


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
        check_heads(self.actor.model.module, config.ds.tensor_parallel_size)
        perplexity = config.perplexity
        self.shared_forward = perplexity is not None and perplexity.shared_forward
        if self.shared_forward:
            check_shared_forward(self.actor.model.module)
        if config.conductor.kind == "conductor":
            context_module(self.actor.model.module, config.conductor.context_layer)  # raises where it has none
        self.trainer.maestro = config

    @torch.no_grad()
    def features(
        self,
        sequences: Tensor,
        attention_mask: Tensor,
        action_mask: Tensor,
        with_hidden: bool,
        branch: ReferenceBranch | None,
    ) -> Features:
        """One forward over prompt + response; where `branch` is given its reference answers are read as well.

        They take a second forward, over prompt + reasoning + reference, or under the component's `shared_forward` part
        in the first. Shapes as in `token_forward`.
        """
        device = torch.cuda.current_device()
        self.actor.eval()
        response = self._forward(
            sequences,
            attention_mask,
            action_mask,
            temperature=self.config.rollout.temperature,
            with_entropy=True,
            with_hidden=with_hidden,
            context_layer=self.config.conductor.context_layer,
            context_pooling=self.config.conductor.context_pooling,
            branch=branch.to(device) if branch is not None and self.shared_forward else None,
        )
        reference_log_prob, reference_s = response.reference_log_prob, 0.0
        if branch is not None and not self.shared_forward:
            start_s = time.perf_counter()
            reference_log_prob = branch.mean(self._forward(*branch.rows(sequences), temperature=1.0).log_probs)
            reference_s = time.perf_counter() - start_s
        self.actor.train()
        assert response.entropy is not None
        return Features(
            log_probs=response.log_probs,
            entropy=response.entropy,
            hidden=response.hidden,
            reference_log_prob=reference_log_prob,
            reference_s=reference_s,
        )

    def _forward(self, *tensors: Tensor, **settings: Any) -> TokenForward:
        """`token_forward` from and to the CPU."""
        device = torch.cuda.current_device()
        found = token_forward(
            self.actor.model,
            *(tensor.to(device) for tensor in tensors),
            chunk_tokens=self.config.ds.logits_chunk_tokens,
            **settings,
        )
        moved: dict[str, Any] = {name: None if value is None else value.cpu() for name, value in vars(found).items()}
        return TokenForward(**moved)

    def export_shards(self) -> dict[int, Any]:
        """Object references to this rank's part of every parameter, cut for the reference's ranks that need it."""
        return export_shards(
            self.actor.model.module,
            torch.distributed.get_rank(),
            self.config.ref_world_size,
            self.config.ds.tensor_parallel_size,
        )

    def save_weights(self, path: Path) -> None:
        """Rank 0 writes the whole policy to a safetensors file (the CPU's way to vLLM)."""
        save_gathered(self.actor.model.module, path)

    def save_state(self, folder: Path) -> None:
        """This rank's part of the policy, optimiser and schedule, by DeepSpeed."""
        self.actor.model.save_checkpoint(str(folder), tag="policy", save_latest=False)

    def export(self, folder: Path) -> None:
        """The policy and its tokenizer in Hugging Face layout; rank 0 writes."""
        self.strategy.save_model(self.actor, self.tokenizer, str(folder))

    def load_state(self, folder: Path) -> None:
        """Raises RuntimeError where DeepSpeed finds no checkpoint."""
        loaded, _ = self.actor.model.load_checkpoint(str(folder), tag="policy")
        if loaded is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint of the policy in {folder}.")

    def hidden_size(self) -> int:
        return int(self.actor.model.module.config.hidden_size)
