"""Runs the policy and reference workers on given micro-batches: `python drive_workers.py FOLDER`.

Reads FOLDER/case.pt and the models that it names, writes FOLDER/result.pt. A process of its own, because it changes
torch and OpenRLHF for the CPU and starts Ray. The case's configurations run one after the other; those with the same
numbers of ranks follow each other in the same processes, which are slow to start.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.launch import ray_settings, worker_environment


def main(folder: Path) -> None:
    case = torch.load(folder / "case.pt", weights_only=False)
    configs = {name: MaestroConfig.model_validate(config) for name, config in case["configs"].items()}
    first = next(iter(configs.values()))
    os.environ.update(worker_environment(first, "cpu"))
    import ray

    ray.init(**ray_settings(first, "cpu") | {"num_gpus": 64, "num_cpus": 64})
    try:
        torch.save(drive(case, configs, folder), folder / "result.pt")
    finally:
        ray.shutdown()


def drive(case: dict[str, Any], configs: dict[str, MaestroConfig], folder: Path) -> dict[str, Any]:
    import ray

    result, groups, ranks = {}, [], None
    for name, config in configs.items():
        needed = (config.actor_world_size, config.ref_world_size, config.ds.tensor_parallel_size)
        if needed != ranks:
            for actor in [actor for group in groups for actor in group._actor_handlers]:
                ray.kill(actor)
            groups, ranks = start_workers(*needed), needed
        result[name] = Scenario(case, config, folder / name, *groups).run()
    return result


def start_workers(policy_ranks: int, reference_ranks: int, shared: int) -> list[Any]:
    import ray

    from openrlhf_maestro.upstream.patches import prepare_process

    prepare_process()
    from openrlhf.trainer.ray.launcher import RayActorGroup

    from openrlhf_maestro.workers.policy import PolicyWorker
    from openrlhf_maestro.workers.reference import ReferenceWorker

    return [
        RayActorGroup(1, ranks, ray.remote(num_gpus=1)(worker), num_gpus_per_actor=1, duplicate_actors=shared)
        for worker, ranks in ((PolicyWorker, policy_ranks), (ReferenceWorker, reference_ranks))
    ]


class Scenario:
    """One policy and one reference: features, then updates each followed by a synchronisation, then a resume."""

    def __init__(self, case: dict[str, Any], config: MaestroConfig, folder: Path, policy: Any, reference: Any) -> None:
        import ray

        folder.mkdir()
        self.case, self.folder, self.policy, self.reference = case, folder, policy, reference
        self.final = config.run_dir / "model" / "model.safetensors"
        loading = self.policy.async_init_model_from_pretrained(config, 100, [])
        ray.get(loading + self.reference.async_init_model_from_pretrained(config))

    def run(self) -> dict[str, Any]:
        import ray
        from safetensors.torch import load_file

        ray.get([actor.__ray_call__.remote(count_forwards) for actor in self.policy._actor_handlers])
        result: dict[str, Any] = {"features": [vars(item) for item in self.features()]}
        result["feature_forwards"] = {True: self.counted_forwards()}
        results(self.policy, "features", **self.case["features"] | {"with_hidden": [False, False]})
        result["feature_forwards"][False] = self.counted_forwards()
        result["reference"] = [self.reference_state("start")]
        result["updates"] = []
        for number in range(self.case["updates"]):
            if number == 1:
                ray.get(self.call("save_state", self.folder))
                result["forwards"] = self.counted_forwards()
            result["updates"].append(self.update(str(number)))
            self.synchronise()
            result["reference"].append(self.reference_state(str(number)))
        ray.get(self.call("load_state", self.folder))
        result["resumed"] = {"reference": self.reference_state("resumed"), "update": self.update("resumed")}
        ray.get(self.policy.async_save_model())
        result["final"] = load_file(self.final)
        return result

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return [
            reference
            for group in (self.policy, self.reference)
            for reference in group.async_run_method(method, *arguments)
        ]

    def counted_forwards(self) -> list[int]:
        """Of each rank of the policy, since the last time."""
        import ray

        counts: list[int] = ray.get([actor.__ray_call__.remote(forwards) for actor in self.policy._actor_handlers])
        return counts

    def features(self) -> list[Any]:
        return results(self.policy, "features", **self.case["features"])

    def update(self, name: str) -> dict[str, Any]:
        import ray
        from openrlhf.trainer.ppo_utils.experience import Experience
        from safetensors.torch import load_file

        batches = [Experience(**batch) for batch in self.case["micro_batches"]]
        ray.get(self.policy.async_run_method_batch("append", experience=batches))
        status = ray.get(self.policy.async_run_method("fit", kl_ctl=self.case["beta"]))[0]
        path = self.folder / f"policy {name}.safetensors"
        ray.get(self.policy.async_run_method("save_weights", path))
        return {"status": status, "weights": load_file(path)}

    def synchronise(self) -> None:
        import ray

        exports = ray.get(self.policy.async_run_method("export_shards"))
        ray.get(self.reference.async_run_method("mix", exports, self.case["alpha"]))

    def reference_state(self, name: str) -> dict[str, Any]:
        """Its weights, gathered, and what it says of the responses."""
        import ray
        from safetensors.torch import load_file

        path = self.folder / f"reference {name}.safetensors"
        write = partial(save_reference, path=path)
        ray.get([actor.__ray_call__.remote(write) for actor in self.reference._actor_handlers])
        tensors = {name: self.case["features"][name] for name in ("sequences", "attention_mask", "action_mask")}
        return {"weights": load_file(path), "log_probs": results(self.reference, "log_probs", **tensors)}


def results(group: Any, method: str, **batched: list[Any]) -> list[Any]:
    """One result a micro-batch, in order."""
    import ray

    chunks = ray.get(group.async_run_method_batch(method, **batched))
    return [item for chunk in chunks[:: group.duplicate_actors] for item in chunk]


def save_reference(worker: Any, path: Path) -> None:
    from openrlhf_maestro.workers.weights import save_gathered

    save_gathered(worker.model.model.module, path)


def count_forwards(worker: Any) -> None:
    worker.forwards = 0

    def count(*_: Any) -> None:
        worker.forwards += 1

    worker.actor.model.module.register_forward_pre_hook(count)


def forwards(worker: Any) -> int:
    """Since the last time, or `count_forwards`."""
    seen: int = worker.forwards
    worker.forwards = 0
    return seen


if __name__ == "__main__":
    main(Path(sys.argv[1]))
