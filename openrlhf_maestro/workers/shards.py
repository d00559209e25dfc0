"""Reference synchronisation without gathering the model: a reference rank reads the policy shards it overlaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus, free_param
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openrlhf_maestro.objective import mix_reference

# name -> (offset of the shard in the flattened parameter, shard)
Shard = dict[str, tuple[int, Tensor]]


def is_sharded(module: nn.Module) -> bool:
    """Whether ZeRO-3 has partitioned the parameters."""
    return any(hasattr(parameter, "ds_tensor") for parameter in module.parameters())


def own_shard(parameter: Any, rank: int) -> tuple[int, Tensor]:
    """Offset and data of the part of a parameter that this rank holds: its ZeRO-3 partition, or all of it.

    The last partition of a parameter is padded; the padding is cut off.
    """
    if not hasattr(parameter, "ds_tensor"):
        return 0, parameter.data.view(-1)
    size = parameter.ds_tensor.ds_numel
    offset = min(rank * size, parameter.ds_numel)
    return offset, parameter.ds_tensor.data.view(-1)[: min(size, parameter.ds_numel - offset)]


def export_shard(module: nn.Module, rank: int) -> Shard:
    """This rank's part of every parameter, on the CPU. Without ZeRO-3 rank 0 has all of it and the others nothing."""
    if not is_sharded(module) and rank > 0:
        return {}
    parts = {name: own_shard(parameter, rank) for name, parameter in module.named_parameters()}
    return {name: (offset, part.detach().cpu().clone()) for name, (offset, part) in parts.items()}


@torch.no_grad()
def mix_shards(module: nn.Module, shards: list[Any], alpha: float) -> None:
    """parameter <- alpha * policy + (1 - alpha) * parameter on this rank's own part of every parameter.

    `shards`: object references of the policy ranks' shards, in rank order. With as many reference ranks as policy ranks
    each fetches its own, and no process holds a whole model; otherwise each fetches all.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if not is_sharded(module):
        needed = [0]
    elif world == len(shards):
        needed = [rank]
    else:
        needed = list(range(len(shards)))
    sources: list[Shard] = ray.get([shards[index] for index in needed])
    for name, parameter in module.named_parameters():
        start, own = own_shard(parameter, rank)
        filled = 0
        for source in sources:
            if name not in source:
                continue
            offset, part = source[name]
            low, high = max(start, offset), min(start + len(own), offset + len(part))
            if low < high:
                here = own[low - start : high - start]
                policy = part[low - offset : high - offset].to(here)
                here.copy_(mix_reference({name: here}, {name: policy}, alpha)[name])
                filled += high - low
        _drop_gathered_copy(parameter)
        if filled != len(own):
            raise RuntimeError(
                f"reference synchronisation: {name} is {len(own)} values here, the policy's shards cover {filled}."
            )


def save_shard(module: nn.Module, folder: Path) -> None:
    """Write this rank's own part of every parameter, flattened, to `folder`/rank_<rank>.safetensors."""
    rank = torch.distributed.get_rank()
    parts = {name: part for name, (_, part) in export_shard(module, rank).items()}
    if parts:
        folder.mkdir(exist_ok=True)
        save_file(parts, folder / f"rank_{rank}.safetensors")


@torch.no_grad()
def load_shard(module: nn.Module, folder: Path) -> None:
    """Read back what `save_shard` wrote under the same number of ranks."""
    rank = torch.distributed.get_rank()
    saved = load_file(folder / f"rank_{rank if is_sharded(module) else 0}.safetensors")
    for name, parameter in module.named_parameters():
        _, own = own_shard(parameter, rank)
        own.copy_(saved[name])
        _drop_gathered_copy(parameter)


def _drop_gathered_copy(parameter: Any) -> None:
    """ZeRO-3 keeps small parameters gathered; after their shards change, that copy is stale."""
    if getattr(parameter, "ds_status", None) == ZeroParamStatus.AVAILABLE:
        free_param(parameter)
