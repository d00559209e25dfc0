"""Checkpoints: everything that a resume needs. Each is written aside and renamed, so that it is whole or absent."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from openrlhf_maestro.conductor import Orchestrator
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.trainer.run_dir import RunDir
from openrlhf_maestro.trainer.workers import Workers

PREFIX = "global_step_"
STATE = "state.json"
ORCHESTRATOR = "orchestrator.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk. The prompts' order, the sampling seeds and the Conductor's draws follow from the step."""

    path: Path
    step: int


def find_checkpoint(config: MaestroConfig, run_dir: RunDir) -> Checkpoint | None:
    """The checkpoint that `run.resume` names, checked against the configuration before anything is loaded.

    Raises:
        ConfigError: there is none at the path given, or it is of another run's shape.
    """
    choice = config.run.resume
    if choice == "never":
        return None
    if choice == "auto":
        steps = _saved_steps(run_dir.checkpoints)
        if not steps:
            return None
        path = run_dir.checkpoints / f"{PREFIX}{steps[-1]}"
    else:
        path = Path(choice)
    if not (path / STATE).is_file():
        raise ConfigError(
            f"run.resume: {path} is not a checkpoint (it has no {STATE}). Give a folder like {PREFIX}20, or auto."
        )
    state = json.loads((path / STATE).read_text())
    for field, now in _fingerprint(config).items():
        if state.get(field) != now:
            raise ConfigError(
                f"run.resume: {path} was written with {field} = {state.get(field)}, the configuration now says {now}. "
                "Set it back, or start anew with run.resume: never and another run.name."
            )
    return Checkpoint(path, state["step"])


def save_checkpoint(
    config: MaestroConfig, run_dir: RunDir, workers: Workers, orchestrator: Orchestrator, step: int
) -> None:
    """Write checkpoints/global_step_<step> and remove the oldest beyond ckpt.max_num."""
    final = run_dir.checkpoints / f"{PREFIX}{step}"
    partial = run_dir.checkpoints / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writing = workers.policy.async_run_method("save_state", partial.resolve())
    if workers.reference is not None:
        writing += workers.reference.async_run_method("save_state", partial.resolve())
    torch.save(orchestrator.state_dict(), partial / ORCHESTRATOR)
    ray.get(writing)
    (partial / STATE).write_text(json.dumps({"step": step} | _fingerprint(config), indent=1))
    if final.exists():
        shutil.rmtree(final)
    os.rename(partial, final)
    for old in _saved_steps(run_dir.checkpoints)[: -config.ckpt.max_num]:
        shutil.rmtree(run_dir.checkpoints / f"{PREFIX}{old}")


def load_checkpoint(checkpoint: Checkpoint, workers: Workers, orchestrator: Orchestrator) -> None:
    """Bring every model, optimiser and the Conductor to the checkpoint's state."""
    path = checkpoint.path.resolve()
    loading = workers.policy.async_run_method("load_state", path)
    if workers.reference is not None:
        loading += workers.reference.async_run_method("load_state", path)
    orchestrator.load_state_dict(torch.load(path / ORCHESTRATOR, weights_only=True))
    ray.get(loading)


def _saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix(PREFIX)) for path in folder.glob(f"{PREFIX}*") if (path / STATE).is_file())


def _fingerprint(config: MaestroConfig) -> dict[str, Any]:
    """What a checkpoint depends on; a difference is refused by the option's name."""
    return {
        "actor.model_name_or_path": config.actor.model_name_or_path,
        "actor.num_nodes x actor.num_gpus_per_node": config.actor_world_size,
        "ref.num_nodes x ref.num_gpus_per_node": config.ref_world_size if config.uses_reference else None,
        "ds.zero_stage": config.ds.zero_stage,
        "data.prompt_dataset": config.data.prompt_dataset,
        "train.seed": config.train.seed,
        "rollout.batch_size": config.rollout.batch_size,
        "rollout.n_samples_per_prompt": config.rollout.n_samples_per_prompt,
        "rewards.components": config.component_names,
        "conductor.kind": config.conductor.kind,
    }
