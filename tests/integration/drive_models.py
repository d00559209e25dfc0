"""Runs policy and preference workers on given micro-batches: `python drive_models.py FOLDER` (see test_models.py).

Reads FOLDER/case.pt, writes FOLDER/result.pt. A process of its own, because it changes torch and OpenRLHF for the CPU
and starts Ray. One group lives at a time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.launch import ray_settings, worker_environment


def main(folder: Path) -> None:
    case = torch.load(folder / "case.pt", weights_only=False)
    configs = {name: MaestroConfig.model_validate(settings) for name, settings in case["configs"].items()}
    some = next(iter(configs.values()))
    os.environ.update(worker_environment(some, "cpu"))
    import ray

    # A group's place is not given back when its actors end.
    places = 2 * len(configs)
    ray.init(**ray_settings(some, "cpu") | {"num_gpus": places, "num_cpus": places + 2})
    try:
        torch.save(drive(case, configs), folder / "result.pt")
    finally:
        ray.shutdown()


def drive(case: dict[str, Any], configs: dict[str, MaestroConfig]) -> dict[str, Any]:
    import ray

    from openrlhf_maestro.upstream.patches import prepare_process

    prepare_process()
    from openrlhf.trainer.ray.launcher import RayActorGroup

    from openrlhf_maestro.workers.policy import PolicyWorker
    from openrlhf_maestro.workers.preference import PreferenceWorker

    class Policy(PolicyWorker):  # type: ignore[misc, valid-type]
        def features_apart(self, **tensors: Any) -> Any:
            self.shared_forward = False
            return self.features(**tensors)

    class Preference(PreferenceWorker):  # type: ignore[misc, valid-type]
        def held(self) -> dict[str, Any]:
            """What this rank's engine is and holds."""
            parameters = list(self.model.module.named_parameters())
            return {
                "stage": self.model.zero_optimization_stage(),
                "dtypes": {str(parameter.dtype) for _, parameter in parameters},
                "names": [name for name, _ in parameters],
                "whole": [getattr(parameter, "ds_numel", parameter.numel()) for _, parameter in parameters],
                "own": [getattr(parameter, "ds_tensor", parameter).numel() for _, parameter in parameters],
                "normalises": self.model.module.normalize_reward,
            }

    @contextmanager
    def group(worker: type, ranks: int, *loading: Any) -> Iterator[Any]:
        actors = RayActorGroup(1, ranks, ray.remote(num_gpus=1)(worker), pg=None, num_gpus_per_actor=1)
        ray.get(actors.async_init_model_from_pretrained(*loading))
        yield actors
        for actor in actors._actor_handlers:
            ray.kill(actor)

    def batched(actors: Any, method: str, batches: dict[str, list[Any]]) -> list[dict[str, Any]]:
        return [vars(item) for chunk in ray.get(actors.async_run_method_batch(method, **batches)) for item in chunk]

    result: dict[str, Any] = {}
    for name in case["policies"]:
        with group(Policy, configs[name].actor_world_size, configs[name], 100, []) as policy:
            result[f"{name} shared"] = batched(policy, "features", case["features"])
            result[f"{name} separate"] = batched(policy, "features_apart", case["features"])
    for name in case["preferences"]:
        with group(Preference, configs[name].reward_world_size, configs[name]) as preference:
            result[name] = batched(preference, "score", case["conversations"])
            result[f"{name} held"] = ray.get(preference.async_run_method("held"))
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]))
