"""Checkpoints: everything that a resume needs. Each is written aside and renamed, so that it is whole or absent."""

from __future__ import annotations

import json
import os
import shutil

import ray
import torch

from openrlhf_maestro.conductor import Orchestrator
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.trainer.resume import PREFIX, STATE, Checkpoint, fingerprint, saved_steps
from openrlhf_maestro.trainer.run_dir import RunDir
from openrlhf_maestro.trainer.workers import Workers

ORCHESTRATOR = "orchestrator.pt"


def save_checkpoint(
    config: MaestroConfig,
    run_dir: RunDir,
    workers: Workers,
    orchestrator: Orchestrator,
    step: int,
    drawn: int,
    best: int | None,
) -> None:
    """Write checkpoints/global_step_<step> and remove the oldest beyond ckpt.max_num.

    `drawn`: batches of prompts used so far. `best`: the step of the best evaluation, whose checkpoint stays.
    """
    final = run_dir.checkpoints / f"{PREFIX}{step}"
    partial = run_dir.checkpoints / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writing = workers.policy.async_run_method("save_state", partial.resolve())
    if workers.reference is not None:
        writing += workers.reference.async_run_method("save_state", partial.resolve())
    torch.save(orchestrator.state_dict(), partial / ORCHESTRATOR)
    ray.get(writing)
    (partial / STATE).write_text(json.dumps({"step": step, "batches_drawn": drawn} | fingerprint(config), indent=1))
    if final.exists():
        shutil.rmtree(final)
    os.rename(partial, final)
    for old in saved_steps(run_dir.checkpoints)[: -config.ckpt.max_num]:
        if old != best:
            shutil.rmtree(run_dir.checkpoints / f"{PREFIX}{old}")


def load_checkpoint(checkpoint: Checkpoint, workers: Workers, orchestrator: Orchestrator) -> None:
    """Bring every model, optimiser and the Conductor to the checkpoint's state."""
    path = checkpoint.path.resolve()
    loading = workers.policy.async_run_method("load_state", path)
    if workers.reference is not None:
        loading += workers.reference.async_run_method("load_state", path)
    orchestrator.load_state_dict(torch.load(path / ORCHESTRATOR, weights_only=True))
    ray.get(loading)
