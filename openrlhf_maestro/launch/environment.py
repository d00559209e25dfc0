"""Environment variables of the worker processes and the arguments of `ray.init`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from openrlhf_maestro.config.schema import MaestroConfig

# Where examples/scripts/install.sh compiles DeepSpeed's CPU ops, so that no first step waits for a compiler.
EXTENSIONS_DIR = Path(sys.prefix) / "torch_extensions"


def process_environment(device: str, trust_remote_code: bool, threads: int = 1) -> dict[str, str]:
    """Variables of any process that loads a model, on `device` ("cpu" or "cuda").

    A variable that the user has set already wins, except where another value cannot work.
    """
    defaults = {
        "TOKENIZERS_PARALLELISM": "false",
        "NCCL_DEBUG": "WARN",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Ray's new behaviour, without the warning about the old one.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    fixed = {"MAESTRO_DEVICE": device, "MAESTRO_TRUST_REMOTE_CODE": str(int(trust_remote_code))}
    if device == "cpu":
        defaults |= {
            # Two processes that each spin two threads on two cores are ten times slower.
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        fixed |= {
            "DS_ACCELERATOR": "cpu",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        if EXTENSIONS_DIR.is_dir():
            fixed["TORCH_EXTENSIONS_DIR"] = str(EXTENSIONS_DIR)
    return {name: os.environ.get(name, value) for name, value in defaults.items()} | fixed


def worker_environment(config: MaestroConfig, device: str) -> dict[str, str]:
    """Variables of every Ray worker of a run."""
    environment = process_environment(device, config.run.trust_remote_code, config.train.cpu_threads_per_worker)
    environment["MAESTRO_LOG_DIR"] = str((config.run_dir / "logs").resolve())
    if device == "cpu":
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(config.vllm.cpu_kvcache_space)
    return environment


def logical_gpus(config: MaestroConfig) -> int:
    """GPUs that the run's placement groups ask for."""
    policy = config.actor_world_size
    engines = config.vllm.num_engines * config.vllm.tensor_parallel_size
    reference = config.ref_world_size if config.uses_reference else 0
    preference = config.reward_world_size if config.component_of_kind("preference") else 0
    if config.train.colocate_all:
        return max(policy, preference)
    if config.train.colocate_actor_ref:
        return policy + engines + preference
    return policy + engines + reference + preference


def ray_settings(config: MaestroConfig, device: str) -> dict[str, Any]:
    """Arguments of `ray.init`: an existing cluster where RAY_ADDRESS names one, else a local one of this run's own."""
    settings: dict[str, Any] = {
        "runtime_env": {"env_vars": worker_environment(config, device)},
        "log_to_driver": False,
        "logging_level": "ERROR",
        "configure_logging": False,
    }
    if os.environ.get("RAY_ADDRESS"):
        return settings | {"address": os.environ["RAY_ADDRESS"]}
    # A cluster of this run's own listens on this machine only: whoever reaches Ray's ports can run code.
    settings |= {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    if device == "cpu":
        gpus = logical_gpus(config)
        # GPUs are logical here, and every actor holds as many CPUs as GPUs.
        settings |= {"num_gpus": gpus, "num_cpus": gpus + 2, "object_store_memory": 512 * 1024**2}
    return settings
