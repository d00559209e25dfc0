"""Responses of one model with vLLM in this process: no Ray, no training."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from openrlhf_maestro.config.evaluate import EvaluateConfig
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.launch.environment import process_environment
from openrlhf_maestro.rollout.responses import Response
from openrlhf_maestro.upstream.device import param_dtype

PREFILL_TOKENS = 2048  # vLLM's own default budget of a scheduling step
_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class Request:
    """One response that is wanted."""

    key: str
    token_ids: list[int]
    seed: int


def prepare_environment(config: EvaluateConfig, device: str) -> None:
    """What vLLM reads from the environment; before it is imported."""
    os.environ.update(process_environment(device, config.run.trust_remote_code))
    if device == "cpu":
        import torch

        # It was loaded before the variables were set.
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        # As in engine.py: no compiler for the sampler, no second process.
        os.environ.update(
            {
                "TORCHDYNAMO_DISABLE": "1",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_CPU_KVCACHE_SPACE": str(config.vllm.cpu_kvcache_space),
            }
        )


def engine_arguments(config: EvaluateConfig, model: str, device: str, max_model_len: int) -> dict[str, Any]:
    """Arguments of vLLM's LLM for the model in folder (or of name) `model`."""
    vllm = config.vllm
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": _DTYPES[param_dtype(vllm.param_dtype, device)],
        "max_model_len": max_model_len,
        "tensor_parallel_size": vllm.tensor_parallel_size,
        "enforce_eager": vllm.enforce_eager or device == "cpu",
        "enable_prefix_caching": vllm.enable_prefix_caching,
        "trust_remote_code": config.run.trust_remote_code,
        "disable_log_stats": True,
    }
    if device == "cpu":
        # A prompt prefilled in chunks rewinds its seeded generator, which one on a CPU cannot do: vLLM would die.
        return arguments | {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(max_model_len, PREFILL_TOKENS),
        }
    return arguments | {"gpu_memory_utilization": vllm.gpu_memory_utilization}


class OfflineEngine:
    """A vLLM engine, as a context manager: its memory is free after it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        """Loads the model."""
        from vllm import LLM

        self._engine = LLM(**arguments).llm_engine

    def __enter__(self) -> OfflineEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        self._engine.engine_core.shutdown()
        del self._engine
        gc.collect()
        cleanup_dist_env_and_memory()

    def generate(self, requests: Sequence[Request], sampling: dict[str, Any]) -> Iterator[tuple[str, Response]]:
        """Key and response of each request as it finishes. `sampling`: arguments of vLLM's SamplingParams."""
        from vllm import SamplingParams

        for request in requests:
            parameters = SamplingParams(seed=request.seed, detokenize=False, **sampling)
            self._engine.add_request(request.key, {"prompt_token_ids": request.token_ids}, parameters)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    yield output.request_id, Response.from_vllm(output.outputs[0])


@contextmanager
def output_to(log: Path) -> Iterator[TextIO]:
    """Everything this process and those it starts print goes to `log`; what is yielded still reaches the terminal.

    Raises:
        RunError: the log cannot be written.
    """
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise RunError(f"{log} cannot be written: {error.strerror}.") from None
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    try:
        with os.fdopen(os.dup(saved[0]), "w", encoding="utf-8") as terminal:
            yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, original in enumerate(saved, 1):
            os.dup2(original, number)
            os.close(original)
