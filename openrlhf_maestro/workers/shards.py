"""Reference synchronisation without gathering the model: a reference rank reads what it holds of the policy's parts.

Under AutoTP a rank holds slices of the layers, those of rank % tensor_parallel_size; under ZeRO-3 it holds a stretch of
every flattened parameter, else whole parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus, free_param
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openrlhf_maestro.objective import mix_reference

# name -> (offset of the part in the flattened parameter, part)
Shard = dict[str, tuple[int, Tensor]]


def check_heads(model: nn.Module, tensor_parallel_size: int) -> None:
    """Raise ValueError for a model whose key-value heads do not divide over the GPUs that share a layer."""
    heads = getattr(model.config, "num_key_value_heads", None)
    if heads is not None and heads % tensor_parallel_size:
        raise ValueError(
            f"{type(model).__name__} has {heads} key-value heads, which do not divide over ds.tensor_parallel_size: "
            f"{tensor_parallel_size}. Set it to a divisor of {heads}."
        )


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


def partition(numel: int, rank: int, ranks: int) -> tuple[int, int]:
    """Where the stretch that ZeRO-3 gives a rank of a parameter of `numel` values begins and ends."""
    size = -(-numel // ranks)
    return min(rank * size, numel), min((rank + 1) * size, numel)


def overlap(own: Shard, numel: dict[str, int], rank: int, ranks: int) -> Shard:
    """What a part has in common with the part that `rank` of `ranks` holds; empty where there is nothing.

    Args:
        own: a rank's part of every parameter.
        numel: values of each whole parameter.
        rank, ranks: of the other model.
    """
    common = {}
    for name, (offset, part) in own.items():
        begin, end = partition(numel[name], rank, ranks)
        low, high = max(begin, offset), min(end, offset + len(part))
        if low < high:
            common[name] = (low, part[low - offset : high - offset].detach().cpu().clone())
    return common


def export_shards(module: nn.Module, rank: int, reference_ranks: int, tensor_parallel_size: int) -> dict[int, Any]:
    """Object references to what each reference rank needs of this policy rank, by the reference's rank.

    Every value is exported by one policy rank, and under ZeRO-3 for one reference rank.
    """
    if not is_sharded(module):
        # All data-parallel ranks hold the same: the first of each AutoTP slice hands it out.
        if rank >= tensor_parallel_size:
            return {}
        whole = {name: (0, parameter.data.view(-1).cpu().clone()) for name, parameter in module.named_parameters()}
        return dict.fromkeys(range(rank, reference_ranks, tensor_parallel_size), ray.put(whole))
    parameters: dict[str, Any] = dict(module.named_parameters())
    own = {name: own_shard(parameter, rank) for name, parameter in parameters.items()}
    numel = {name: parameter.ds_numel for name, parameter in parameters.items()}
    parts = {target: overlap(own, numel, target, reference_ranks) for target in range(reference_ranks)}
    return {target: ray.put(part) for target, part in parts.items() if part}


@torch.no_grad()
def mix_shards(module: nn.Module, exports: list[dict[int, Any]], alpha: float) -> None:
    """parameter <- alpha * policy + (1 - alpha) * parameter on this rank's own part of every parameter.

    Args:
        exports: what `export_shards` returned on each policy rank.
        alpha: share of the policy.

    Raises:
        RuntimeError: the policy's parts do not cover a parameter: the two models are not of one shape.
    """
    rank = torch.distributed.get_rank()
    sources: list[Shard] = ray.get([export[rank] for export in exports if rank in export])
    for name, parameter in module.named_parameters():
        start, own = own_shard(parameter, rank)
        filled = 0
        for source in sources:
            if name not in source:
                continue
            offset, part = source[name]
            here = own[offset - start : offset - start + len(part)]
            here.copy_(mix_reference({name: here}, {name: part.to(here)}, alpha)[name])
            filled += len(part)
        _drop_gathered_copy(parameter)
        if filled != len(own):
            raise RuntimeError(
                f"reference synchronisation: {name} is {len(own)} values here, the policy's parts cover {filled}."
            )


def save_shard(module: nn.Module, folder: Path, tensor_parallel_size: int) -> None:
    """Write this rank's own part of every parameter, flattened, to `folder`/rank_<rank>.safetensors.

    Without ZeRO-3 the first data-parallel rank of each AutoTP slice writes for the others, which hold the same.
    """
    rank = torch.distributed.get_rank()
    if is_sharded(module) or rank < tensor_parallel_size:
        folder.mkdir(exist_ok=True)
        parts = {name: own_shard(parameter, rank)[1] for name, parameter in module.named_parameters()}
        save_file({name: part.cpu().clone() for name, part in parts.items()}, folder / f"rank_{rank}.safetensors")


@torch.no_grad()
def load_shard(module: nn.Module, folder: Path, tensor_parallel_size: int) -> None:
    """Read back what `save_shard` wrote under the same number of ranks."""
    rank = torch.distributed.get_rank()
    writer = rank if is_sharded(module) else rank % tensor_parallel_size
    saved = load_file(folder / f"rank_{writer}.safetensors")
    for name, parameter in module.named_parameters():
        _, own = own_shard(parameter, rank)
        own.copy_(saved[name])
        _drop_gathered_copy(parameter)


def _drop_gathered_copy(parameter: Any) -> None:
    """ZeRO-3 keeps small parameters gathered; after their shards change, that copy is stale."""
    if getattr(parameter, "ds_status", None) == ZeroParamStatus.AVAILABLE:
        free_param(parameter)
