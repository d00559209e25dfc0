"""Which checkpoint a run continues from: decided before anything heavy is imported."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import ConfigError

PREFIX = "global_step_"
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk. The prompts' order, the sampling seeds and the Conductor's draws follow from the step."""

    path: Path
    step: int
    batches_drawn: int  # batches of prompts used; more than steps under dynamic filtering

    def is_in(self, checkpoints: Path) -> bool:
        """Whether it is one of the run that keeps its checkpoints there."""
        return self.path.resolve().parent == checkpoints.resolve()


def find_checkpoint(config: MaestroConfig, checkpoints: Path) -> Checkpoint | None:
    """The checkpoint that `run.resume` names, checked against the configuration before anything is loaded.

    Raises:
        ConfigError: there is none at the path given, or it is of another run's shape.
    """
    choice = config.run.resume
    if choice == "never":
        return None
    if choice == "auto":
        steps = saved_steps(checkpoints)
        if not steps:
            return None
        path = checkpoints / f"{PREFIX}{steps[-1]}"
    else:
        path = Path(choice)
    if not (path / STATE).is_file():
        raise ConfigError(
            f"run.resume: {path} is not a checkpoint (it has no {STATE}). Give a folder like {PREFIX}20, or auto."
        )
    state = json.loads((path / STATE).read_text())
    for field, now in fingerprint(config).items():
        if state.get(field) != now:
            raise ConfigError(
                f"run.resume: {path} was written with {field} = {state.get(field)}, the configuration now says {now}. "
                "Set it back, or start anew with run.resume: never and another run.name."
            )
    if "batches_drawn" not in state:
        raise ConfigError(
            f"run.resume: {path / STATE} has no batches_drawn: an earlier version wrote it. "
            "Start anew with run.resume: never and another run.name."
        )
    return Checkpoint(path, state["step"], state["batches_drawn"])


def saved_steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints in a folder, oldest first."""
    return sorted(int(path.name.removeprefix(PREFIX)) for path in folder.glob(f"{PREFIX}*") if (path / STATE).is_file())


def fingerprint(config: MaestroConfig) -> dict[str, Any]:
    """What a checkpoint depends on; a difference is refused by the option's name."""
    return {
        "actor.model_name_or_path": config.actor.model_name_or_path,
        "actor.num_nodes x actor.num_gpus_per_node": config.actor_world_size,
        "ref.num_nodes x ref.num_gpus_per_node": config.ref_world_size if config.uses_reference else None,
        "ds.zero_stage": config.ds.zero_stage,
        "ds.tensor_parallel_size": config.ds.tensor_parallel_size if config.ds.tensor_parallel_size > 1 else None,
        "data.prompt_dataset": config.data.prompt_dataset,
        "data.prompt_probs": config.data.prompt_probs,
        "train.seed": config.train.seed,
        "rollout.batch_size": config.rollout.batch_size,
        "rollout.n_samples_per_prompt": config.rollout.n_samples_per_prompt,
        "rewards.components": config.component_names,
        "anchor": f"{config.anchor.label} ({config.anchor.kind})" if config.anchor is not None else None,
        "conductor.kind": config.conductor.kind,
        "conductor.credit": config.conductor.credit,
        "conductor.schedule": config.conductor.schedule,
        "conductor.freeze": config.conductor.freeze,
        "conductor.learn_temperature": config.conductor.learn_temperature,
        "conductor.context_layer": config.conductor.context_layer,
        "conductor.context_pooling": config.conductor.context_pooling,
    }
