"""The vLLM engine actor: OpenRLHF's, with our executor and a seed for every response."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from openrlhf_maestro.upstream.actors import log_to_file, plain_class
from openrlhf_maestro.upstream.device import worker_device

if worker_device() == "cpu":
    # vLLM reads these when it is imported. Its sampler would otherwise be compiled at the first request (17 s were
    # measured), and every engine would start one more process.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from openrlhf.trainer.ray import vllm_engine
from openrlhf.utils.agent import AgentExecutorBase
from vllm import SamplingParams

from openrlhf_maestro.rollout.responses import Response

PREFILL_TOKENS = 2048  # vLLM's own default budget of a scheduling step
WORKER_EXTENSION = "openrlhf_maestro.rollout.worker_extension.WorkerExtension"


class ResponseExecutor(AgentExecutorBase):
    """Samples one response. No reward is computed inside the engine: the trainer sees whole groups."""

    async def execute(  # type: ignore[override]
        self, prompt: list[int], sampling_params: SamplingParams, llm_engine: RolloutEngine
    ) -> Response:
        request = await llm_engine.generate(prompt, sampling_params)
        return Response.from_vllm(request.outputs[0])


class RolloutEngine(plain_class(vllm_engine.RolloutRayActor)):  # type: ignore[misc]
    """One vLLM engine."""

    async def __init__(  # type: ignore[misc]
        self, *args: Any, engine_index: int, cpu: bool, **kwargs: Any
    ) -> None:
        log_to_file(f"vllm_engine{engine_index}")
        if cpu:
            # On a CPU vLLM sizes its cache by VLLM_CPU_KVCACHE_SPACE.
            kwargs.pop("gpu_memory_utilization", None)
            # A prompt prefilled in chunks rewinds its seeded generator, which one on a CPU cannot do: vLLM would die.
            kwargs["enable_chunked_prefill"] = False
            kwargs["max_num_batched_tokens"] = max(kwargs["max_model_len"], PREFILL_TOKENS)
        await super().__init__(*args, worker_extension_cls=WORKER_EXTENSION, **kwargs)
        self.executor = ResponseExecutor()

    async def sample(self, prompt_token_ids: list[int], sampling: dict[str, Any], seeds: list[int]) -> list[Response]:
        """One response a seed, in the order of the seeds. `sampling`: arguments of vLLM's SamplingParams."""
        requests = [
            self.executor.execute(prompt_token_ids, SamplingParams(seed=seed, **sampling), self) for seed in seeds
        ]
        return list(await asyncio.gather(*requests))

    async def load_weights_file(self, path: Path) -> None:
        """Take over the weights of a safetensors file (the CPU's way)."""
        await self.llm.collective_rpc("load_weights_file", args=(str(path),))
        await self.llm.reset_prefix_cache()

    def shutdown(self) -> None:
        """Stop vLLM's own processes; they would outlive this actor's kill."""
        self.llm.shutdown()
