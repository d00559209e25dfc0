"""Runs the policy and reference workers on given micro-batches: `python drive_workers.py FOLDER` (see test_update.py).

Reads FOLDER/case.pt and FOLDER/model, writes FOLDER/result.pt. A process of its own, because it changes torch and
OpenRLHF for the CPU and starts Ray.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.launch import ray_settings, worker_environment


def main(folder: Path) -> None:
    case = torch.load(folder / "case.pt", weights_only=False)
    config = MaestroConfig.model_validate(case["config"])
    os.environ.update(worker_environment(config, "cpu"))
    import ray

    ray.init(**ray_settings(config, "cpu") | {"num_gpus": 6, "num_cpus": 8})
    try:
        torch.save(drive(case, config, folder), folder / "result.pt")
    finally:
        ray.shutdown()


def drive(case: dict[str, Any], config: MaestroConfig, folder: Path) -> dict[str, Any]:
    import ray

    from openrlhf_maestro.upstream.patches import prepare_process

    prepare_process()
    from openrlhf.trainer.ray.launcher import RayActorGroup
    from safetensors.torch import load_file

    from openrlhf_maestro.workers.policy import PolicyWorker
    from openrlhf_maestro.workers.reference import ReferenceWorker

    def group(worker: type, ranks: int) -> Any:
        return RayActorGroup(1, ranks, ray.remote(num_gpus=1)(worker), pg=None, num_gpus_per_actor=1)

    def flat(references: list[Any]) -> list[Any]:
        return [item for chunk in ray.get(references) for item in chunk]

    other = MaestroConfig.model_validate(case["other_config"])
    policies = {"two ranks": (group(PolicyWorker, 2), config), "one rank": (group(PolicyWorker, 1), other)}
    references = {"one rank": group(ReferenceWorker, 1), "two ranks": group(ReferenceWorker, 2)}
    loading = []
    for policy, its_config in policies.values():
        loading += policy.async_init_model_from_pretrained(its_config, 100, [])
    for reference in references.values():
        loading += reference.async_init_model_from_pretrained(config)
    ray.get(loading)

    result: dict[str, Any] = {"updates": {}, "reference": {}}
    first, _ = policies["two ranks"]
    features = flat(first.async_run_method_batch("features", **case["features"]))
    result["features"] = [vars(item) for item in features]
    for name, (policy, _) in policies.items():
        updates = []
        for number in range(case["updates"]):
            ray.get(policy.async_run_method_batch("append", experience=micro_batches(case)))
            status = ray.get(policy.async_run_method("fit", kl_ctl=case["beta"]))[0]
            path = folder / f"{name} {number}.safetensors"
            ray.get(policy.async_run_method("save_weights", path))
            updates.append({"status": status, "weights": load_file(path)})
        result["updates"][name] = updates
    shards = ray.get(first.async_run_method("export_shard"))
    tensors = {name: case["features"][name] for name in ("sequences", "attention_mask", "action_mask")}
    for name, reference in references.items():
        seen = [flat(reference.async_run_method_batch("log_probs", **tensors))]
        for _ in range(2):
            ray.get(reference.async_run_method("mix", shards, case["alpha"]))
            seen.append(flat(reference.async_run_method_batch("log_probs", **tensors)))
        result["reference"][name] = seen
    return result


def micro_batches(case: dict[str, Any]) -> list[Any]:
    from openrlhf.trainer.ppo_utils.experience import Experience

    return [Experience(**batch) for batch in case["micro_batches"]]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
