"""The policy's weights to vLLM, and to the reference."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import ray
from openrlhf.trainer.ray.vllm_engine import batch_vllm_engine_call

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.trainer.workers import Workers


class WeightSync:
    """Policy -> vLLM: OpenRLHF's NCCL or CUDA-IPC on CUDA, a file in shared memory on a CPU."""

    def __init__(self, config: MaestroConfig, device: str, workers: Workers) -> None:
        self.config = config
        self.workers = workers
        self.on_cpu = device == "cpu"
        shared_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self._folder = (
            tempfile.TemporaryDirectory(prefix=f"maestro-weights-{os.getpid()}-", dir=shared_memory)
            if self.on_cpu
            else None
        )

    def to_engines(self) -> None:
        """Every engine samples with the policy's present weights from here on."""
        if self.config.vllm.enable_sleep:
            batch_vllm_engine_call(self.workers.engines, "wake_up", tags=["weights"])
        if self._folder is None:
            ray.get(self.workers.policy.async_run_method("broadcast_to_vllm"))
            return
        path = Path(self._folder.name) / "policy.safetensors"
        ray.get(self.workers.policy.async_run_method("save_weights", path))
        ray.get([engine.load_weights_file.remote(path) for engine in self.workers.engines])

    def to_reference(self, alpha: float) -> None:
        """reference <- alpha * policy + (1 - alpha) * reference (TRL's `ref_model_mixup_alpha`)."""
        if self.workers.reference is None:
            return
        exports = ray.get(self.workers.policy.async_run_method("export_shards"))
        ray.get(self.workers.reference.async_run_method("mix", exports, alpha))

    def close(self) -> None:
        """Remove the file in shared memory."""
        if self._folder is not None:
            self._folder.cleanup()
