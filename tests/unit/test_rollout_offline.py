"""Generation without Ray: what vLLM is told, and where its output goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openrlhf_maestro.config.evaluate import EvaluateConfig
from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rollout.offline import engine_arguments, output_to, prepare_environment


def config(*words: str) -> EvaluateConfig:
    return load_config(EvaluateConfig, ["--model", "m", "--data", "bundled:tasks", *words])


def test_on_a_cpu_it_is_fp32_eager_and_prefills_whole_prompts() -> None:
    arguments = engine_arguments(config(), "folder", "cpu", 4096)
    assert (arguments["model"], arguments["dtype"], arguments["max_model_len"]) == ("folder", "float32", 4096)
    assert arguments["enforce_eager"] is True and arguments["enable_chunked_prefill"] is False
    assert arguments["max_num_batched_tokens"] == 4096
    assert engine_arguments(config(), "folder", "cpu", 100)["max_num_batched_tokens"] == 2048
    assert "gpu_memory_utilization" not in arguments


def test_on_cuda_it_is_bf16_with_the_gpus_options() -> None:
    words = ["--vllm.tensor_parallel_size", "2", "--vllm.gpu_memory_utilization", "0.5"]
    arguments = engine_arguments(config(*words), "folder", "cuda", 4096)
    assert (arguments["dtype"], arguments["tensor_parallel_size"]) == ("bfloat16", 2)
    assert arguments["gpu_memory_utilization"] == 0.5 and arguments["enforce_eager"] is False
    assert "enable_chunked_prefill" not in arguments
    assert engine_arguments(config("--vllm.param_dtype", "fp32"), "folder", "cuda", 9)["dtype"] == "float32"
    assert engine_arguments(config("--run.trust_remote_code"), "folder", "cuda", 9)["trust_remote_code"] is True


def test_the_environment_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    threads = torch.get_num_threads()
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"OMP_NUM_THREADS": "1"})
    try:
        prepare_environment(config("--vllm.cpu_kvcache_space", "3"), "cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    wanted = {"VLLM_CPU_KVCACHE_SPACE": "3", "TORCHDYNAMO_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    assert wanted.items() <= os.environ.items()
    assert os.environ["MAESTRO_DEVICE"] == "cpu"


CHATTY = """
import os, subprocess, sys
from pathlib import Path
from openrlhf_maestro.rollout.offline import output_to
print("before")
try:
    with output_to(Path(sys.argv[1])) as terminal:
        print("a line of the engine")
        print("a warning", file=sys.stderr)
        subprocess.run([sys.executable, "-c", "print('a child')"], check=True)
        print("for the user", file=terminal)
        raise ValueError
except ValueError:
    print("after")
    print("an error", file=sys.stderr)
"""


def test_what_an_engine_prints_goes_to_the_log_and_back_after_an_error(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("earlier\n")
    done = subprocess.run([sys.executable, "-c", CHATTY, log], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "before\nfor the user\nafter\n"
    assert done.stderr == "an error\n"
    lines = log.read_text().splitlines()
    assert lines[0] == "earlier" and set(lines[1:]) == {"a line of the engine", "a warning", "a child"}


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"engine\.log cannot be written"), output_to(tmp_path / "none" / "engine.log"):
        pass


def test_no_file_stays_open(tmp_path: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    def once() -> Any:
        with output_to(tmp_path / "engine.log"):
            return None

    once()
    before = opened()
    for _ in range(3):
        once()
    assert opened() == before
