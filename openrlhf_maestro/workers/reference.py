"""The reference model of the KL term."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.upstream.actors import log_to_file, plain_class
from openrlhf_maestro.upstream.device import worker_device
from openrlhf_maestro.upstream.patches import prepare_process

prepare_process()

from openrlhf.trainer.ray.launcher import ReferenceModelActor  # noqa: E402
from openrlhf.utils import get_strategy  # noqa: E402

from openrlhf_maestro.upstream.options import scoring_arguments  # noqa: E402
from openrlhf_maestro.workers.forward import check_supported, token_forward  # noqa: E402
from openrlhf_maestro.workers.shards import check_heads, load_shard, mix_shards, save_shard  # noqa: E402


class ReferenceWorker(plain_class(ReferenceModelActor)):  # type: ignore[misc]
    """One rank of the reference model."""

    def __init__(self, world_size: int, rank: int, master_addr: str | None, master_port: int | None) -> None:
        log_to_file(f"reference_rank{rank}")
        super().__init__(world_size, rank, master_addr, master_port)

    def init_model_from_pretrained(self, config: MaestroConfig) -> None:
        self.config = config
        size = config.ds.tensor_parallel_size
        strategy = get_strategy(
            scoring_arguments(config, worker_device(), ranks=config.ref_world_size, tensor_parallel_size=size)
        )
        super().init_model_from_pretrained(strategy, config.actor.model_name_or_path)
        check_supported(self.model.model.module)
        check_heads(self.model.model.module, size)

    @torch.no_grad()
    def log_probs(self, sequences: Tensor, attention_mask: Tensor, action_mask: Tensor) -> Tensor:
        """(B, T - 1) fp32 log-probs of the response tokens at the sampling temperature, 0 outside the mask."""
        device = torch.cuda.current_device()
        result = token_forward(
            self.model.model,
            sequences.to(device),
            attention_mask.to(device),
            action_mask.to(device),
            temperature=self.config.rollout.temperature,
            chunk_tokens=self.config.ds.logits_chunk_tokens,
        )
        return result.log_probs.cpu()

    def mix(self, exports: list[dict[int, Any]], alpha: float) -> None:
        """reference <- alpha * policy + (1 - alpha) * reference, from what the policy's ranks exported."""
        mix_shards(self.model.model.module, exports, alpha)

    def save_state(self, folder: Path) -> None:
        """This rank's part of the reference, which the synchronisation has moved from where it started."""
        save_shard(self.model.model.module, folder / "reference", self.config.ds.tensor_parallel_size)

    def load_state(self, folder: Path) -> None:
        load_shard(self.model.model.module, folder / "reference", self.config.ds.tensor_parallel_size)
