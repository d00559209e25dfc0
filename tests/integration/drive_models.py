"""Runs policy and preference workers on given micro-batches: `python drive_models.py FOLDER` (see test_models.py).

Reads FOLDER/case.pt, writes FOLDER/result.pt. A process of its own, because it changes torch and OpenRLHF for the CPU
and starts Ray. One group of two ranks lives at a time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.launch import ray_settings, worker_environment

RANKS = 2


def main(folder: Path) -> None:
    case = torch.load(folder / "case.pt", weights_only=False)
    configs = {name: MaestroConfig.model_validate(settings) for name, settings in case["configs"].items()}
    some = next(iter(configs.values()))
    os.environ.update(worker_environment(some, "cpu"))
    import ray

    ray.init(**ray_settings(some, "cpu") | {"num_gpus": RANKS, "num_cpus": RANKS + 2})
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

    def run(worker: type, method: str, batches: dict[str, list[Any]], *loading: Any) -> dict[str, Any]:
        group = RayActorGroup(1, RANKS, ray.remote(num_gpus=1)(worker), pg=None, num_gpus_per_actor=1)
        ray.get(group.async_init_model_from_pretrained(*loading))
        chunks = ray.get(group.async_run_method_batch(method, **batches))
        found: dict[str, Any] = {"results": [vars(item) for chunk in chunks for item in chunk]}
        if worker is Preference:
            found["held"] = ray.get(group.async_run_method("held"))
        for actor in group._actor_handlers:
            ray.kill(actor)
        return found

    result = {}
    for name, batches in case["policies"].items():
        result[name] = run(PolicyWorker, "features", batches, configs[name], 100, [])
    for name, batches in case["preferences"].items():
        result[name] = run(Preference, "score", batches, configs[name])
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]))
