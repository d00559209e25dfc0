"""Starts the Ray actors of a run where OpenRLHF's placement puts them, and stops them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from openrlhf.trainer.ray.launcher import RayActorGroup
from openrlhf.trainer.ray.vllm_engine import create_vllm_engines
from ray.util.placement_group import placement_group

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.rollout.engine import RolloutEngine
from openrlhf_maestro.upstream.device import param_dtype
from openrlhf_maestro.upstream.patches import put_class
from openrlhf_maestro.workers.policy import PolicyWorker
from openrlhf_maestro.workers.preference import PreferenceWorker
from openrlhf_maestro.workers.reference import ReferenceWorker

VLLM_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
# Share of a GPU that an actor asks for where several live on one, as in OpenRLHF.
SHARED_GPU = 0.2


@dataclass
class Workers:
    """The actors of a run."""

    policy: RayActorGroup
    reference: RayActorGroup | None
    preference: RayActorGroup | None
    engines: list[Any]


def start_workers(config: MaestroConfig, device: str, total_updates: int) -> Workers:
    """Start every actor and load every model, side by side.

    Args:
        total_updates: optimiser steps of the whole run, the length of the learning-rate schedule.
    """
    colocated = config.train.colocate_all or config.train.colocate_actor_ref
    group = _placement(config.actor_world_size) if colocated else None
    everything = group if config.train.colocate_all else None
    engines = _engines(config, device, everything)
    preference = None
    if config.component_of_kind("preference"):
        preference = _group(PreferenceWorker, config.reward.num_nodes, config.reward.num_gpus_per_node, everything)
    reference, shared = None, config.ds.tensor_parallel_size
    if config.uses_reference:
        reference = _group(ReferenceWorker, config.ref.num_nodes, config.ref.num_gpus_per_node, group, shared)
    loading: list[Any] = []
    for side in (preference, reference):
        if side is not None:
            loading += side.async_init_model_from_pretrained(config)
    policy = _group(PolicyWorker, config.actor.num_nodes, config.actor.num_gpus_per_node, group, shared)
    loading += policy.async_init_model_from_pretrained(config, total_updates, engines)
    ray.get(loading)
    ray.get([engine.get_num_unfinished_requests.remote() for engine in engines])
    return Workers(policy, reference, preference, engines)


def _placement(gpus: int) -> Any:
    group = placement_group([{"GPU": 1, "CPU": 1} for _ in range(gpus)], strategy="PACK")
    ray.get(group.ready())
    return group


def _group(worker: type, nodes: int, gpus_per_node: int, placement: Any, gpus_a_layer: int = 1) -> RayActorGroup:
    """The ranks that share every layer (AutoTP) are given the same micro-batches, and return the same results."""
    return RayActorGroup(
        nodes,
        gpus_per_node,
        ray.remote(num_gpus=1)(worker),
        pg=placement,
        num_gpus_per_actor=SHARED_GPU if placement else 1,
        duplicate_actors=gpus_a_layer,
    )


def _engines(config: MaestroConfig, device: str, placement: Any) -> list[Any]:
    vllm = config.vllm
    dtype = VLLM_DTYPES[param_dtype(config.ds.param_dtype, device)]
    engine_class = _EngineClass(dtype=dtype, trust_remote_code=config.run.trust_remote_code, cpu=device == "cpu")
    put_class("openrlhf.trainer.ray.vllm_engine:RolloutRayActor", engine_class)
    return create_vllm_engines(
        vllm.num_engines,
        vllm.tensor_parallel_size,
        config.actor.model_name_or_path,
        config.train.seed,
        config.train.full_determinism_enable,
        vllm.enable_prefix_caching,
        vllm.enforce_eager or device == "cpu",
        config.data.max_len,
        placement,
        vllm.gpu_memory_utilization,
        vllm.enable_sleep,
        # The default differs from the trainer's log-probs at any temperature but 1.
        "processed_logprobs",
    )


class _EngineClass:
    """Stands where `create_vllm_engines` expects an actor class; starts our engine with some arguments overridden."""

    def __init__(self, **overrides: Any) -> None:
        self.overrides = overrides
        self.started = 0
        self.actor: Any = ray.remote(RolloutEngine)
        self.settings: dict[str, Any] = {}

    def options(self, **settings: Any) -> _EngineClass:
        self.settings = settings
        return self

    def remote(self, **arguments: Any) -> Any:
        arguments.pop("worker_extension_cls")
        index, self.started = self.started, self.started + 1
        return self.actor.options(**self.settings).remote(engine_index=index, **(arguments | self.overrides))
