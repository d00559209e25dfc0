"""The run directory: what is written there and how it is continued."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openrlhf_maestro.config.load import to_yaml
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.config.writing import write_atomically
from openrlhf_maestro.trainer.batch import Scored

Column = Sequence[Any] | np.ndarray
Columns = Mapping[str, Column]


class RunDir:
    """The files of a run; docs/metrics.md says what each holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.rollouts = path / "rollouts"
        self.evaluations = path / "evaluations"
        self.conductor = path / "conductor"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.best = path / "best"
        self.logs = path / "logs"

    def start(self, config: MaestroConfig, continues_at: int | None) -> Path | None:
        """Make the folder ready for a new run (None), or for one that continues in it after so many steps.

        Before a new run an earlier one of the same name is moved aside, never overwritten. When a run continues, what
        it wrote after the checkpoint is dropped, because it will be written again.

        Returns:
            Where an earlier run was moved, or None.
        """
        moved = None
        if continues_at is None and self.metrics.exists():
            stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self.metrics.stat().st_mtime))
            moved = self.path.with_name(f"{self.path.name}.{stamp}")
            os.rename(self.path, moved)
        for folder in (self.rollouts, self.evaluations, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        if continues_at is not None:
            self._forget_after(continues_at)
        write_atomically(self.path / "config.yaml", to_yaml(config))
        return moved

    def _forget_after(self, step: int) -> None:
        kept = [line for line in self.metrics.read_text().splitlines() if _step_of(line) <= step]
        write_atomically(self.metrics, "".join(line + "\n" for line in kept))
        for folder in (self.rollouts, self.evaluations):
            for file in folder.glob("step_*.parquet"):
                if int(file.stem.removeprefix("step_")) > step:
                    file.unlink()

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """One line; a number that is not finite becomes null."""
        finite = {key: _finite(value) for key, value in values.items()}
        with self.metrics.open("a") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")

    def write_rollouts(self, step: int, scored: Scored) -> None:
        """One row a response."""
        _write_parquet(self.rollouts / f"step_{step:06d}.parquet", rollout_columns(step, scored))

    def write_evaluation(self, step: int, columns: Columns) -> None:
        """One row an evaluated response."""
        _write_parquet(self.evaluations / f"step_{step:06d}.parquet", columns)


def rollout_columns(step: int, scored: Scored) -> dict[str, Column]:
    """The columns of a step's rollout file (docs/metrics.md says what each holds)."""
    rollouts = scored.rollouts
    columns: dict[str, Column] = {
        "step": [step] * len(rollouts),
        "prompt": [rollout.prompt.text for rollout in rollouts],
        "response": [rollout.text for rollout in rollouts],
        "reference": [rollout.prompt.reference for rollout in rollouts],
        "datasource": [rollout.prompt.datasource for rollout in rollouts],
        "group": [rollout.group for rollout in rollouts],
        "action": _names(scored),
        "anchor": scored.anchor.numpy() if scored.anchor is not None else [None] * len(rollouts),
        "scalar_reward": scored.scalar.numpy(),
        "advantage": scored.advantages.numpy(),
        "truncated": scored.truncated.numpy(),
        "response_tokens": scored.response_tokens.numpy(),
        "policy_loss_tokens": scored.policy_loss_tokens.numpy(),
        "kl": scored.kl.numpy() if scored.kl is not None else [None] * len(rollouts),
        "kl_penalty": scored.kl_penalty.numpy() if scored.kl_penalty is not None else [None] * len(rollouts),
        "logprob_diff_mean": scored.logprob_diff_mean.numpy(),
        "logprob_diff_max": scored.logprob_diff_max.numpy(),
    }
    for k, name in enumerate(scored.component_names):
        columns[f"raw_{name}"] = scored.raw[:, k].numpy()
        columns[f"norm_{name}"] = scored.normalised[:, k].numpy()
        columns[f"weight_{name}"] = scored.weights[:, k].numpy()
        columns[f"pi_{name}"] = scored.probs[:, k].numpy()
    return columns


def _names(scored: Scored) -> list[str | None]:
    if scored.actions is None:
        return [None] * len(scored.rollouts)
    return [scored.component_names[action] for action in scored.actions.tolist()]


def _write_parquet(path: Path, columns: Columns) -> None:
    partial = path.with_suffix(".partial")
    pq.write_table(pa.table(dict(columns)), partial)
    os.replace(partial, path)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except json.JSONDecodeError:
        # The last line of a run that was killed while writing it.
        return 2**63
