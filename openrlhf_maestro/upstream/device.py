"""Which device a process computes on. Chosen once by the controller, handed to the workers through the environment."""

from __future__ import annotations

import os

import torch

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import ConfigError, UserError

# Attention kernels that take a mask of their own for each row, which `shared_forward` needs.
MASKED_ATTENTION = ("sdpa", "eager")


def choose_device(choice: str) -> str:
    """ "cpu" or "cuda" for `run.device`.

    Raises:
        UserError: "cuda" was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise UserError("run.device is cuda, but PyTorch sees no GPU here. Set run.device: auto or cpu.")
    return "cuda" if available and choice != "cpu" else "cpu"


def check_device_options(config: MaestroConfig, device: str) -> None:
    """Refuse what vLLM or PyTorch cannot do on this device.

    Raises:
        ConfigError: naming the option.
    """
    attention = attn_implementation(config.ds.attn_implementation, device)
    if config.perplexity is not None and config.perplexity.shared_forward and attention not in MASKED_ATTENTION:
        raise ConfigError(
            f"the `{config.perplexity.label}` component: shared_forward needs an attention kernel that takes a 4D "
            f"mask, and ds.attn_implementation is {attention} here. Set it to sdpa, or shared_forward to false."
        )
    if device != "cpu":
        return
    if config.ds.param_dtype == "bf16":
        raise ConfigError("ds.param_dtype: vLLM's bf16 attention dies on some CPUs. Use fp32 or auto on a CPU.")
    if config.ds.attn_implementation.startswith("flash_attention"):
        raise ConfigError("ds.attn_implementation: flash attention needs CUDA. Use sdpa, eager or auto on a CPU.")
    if config.vllm.enable_sleep:
        raise ConfigError("vllm.enable_sleep frees GPU memory: there is none to free on a CPU. Set it to false.")


def worker_device() -> str:
    """The device this worker was started for."""
    return os.environ.get("MAESTRO_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def param_dtype(choice: str, device: str) -> str:
    """`ds.param_dtype` with `auto` resolved: bf16 on cuda, fp32 on a CPU."""
    return choice if choice != "auto" else ("bf16" if device == "cuda" else "fp32")


def attn_implementation(choice: str, device: str) -> str:
    """`ds.attn_implementation` with `auto` resolved."""
    return choice if choice != "auto" else ("flash_attention_2" if device == "cuda" else "sdpa")
