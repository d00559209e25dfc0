"""The policy's weights on their way to vLLM on a CPU: one safetensors file in shared memory."""

from __future__ import annotations

import os
from pathlib import Path

import deepspeed
import torch
from deepspeed.module_inject.layers import GatherReplacedLayerParams
from safetensors.torch import save_file
from torch import nn


def save_gathered(module: nn.Module, path: Path) -> None:
    """Gather parameter by parameter (a collective under ZeRO-3 and AutoTP) and let rank 0 write them, atomically."""
    is_writer = torch.distributed.get_rank() == 0
    tensors = {}
    for name, parameter in module.named_parameters():
        with (
            deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")),
            GatherReplacedLayerParams([parameter], module),
        ):
            if is_writer:
                tensors[name] = parameter.data.detach().cpu().clone()
    if is_writer:
        partial = path.with_suffix(".partial")
        save_file(tensors, partial)
        os.replace(partial, path)
    torch.distributed.barrier()
