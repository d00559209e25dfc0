"""`maestro weights` gives the weights that a run logged: the same tokens, layer, pooling and Conductor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.integration


def test_weights_of_a_runs_rollouts_are_those_it_logged(
    finished: Callable[..., Any], small_options: dict[str, Any]
) -> None:
    """Of the third step, after which neither changes: the Conductor learns after two, the policy's rate is next to 0.

    Tolerance 1e-5 in fp32: the Conductor has hundreds of times its learning rate here, which rounding of h shows in.
    """
    run = finished(
        small_options
        | {
            "run.max_steps": 3,
            "actor.adam.lr": 1e-12,
            "conductor.lr": 0.02,
            "conductor.update_steps": 2,
            "conductor.context_layer": "middle",
            "conductor.context_pooling": "mean",
            "eval.dataset": "null",
        }
    )
    rollouts, output = run.directory / "rollouts" / "step_000003.parquet", run.directory / "weights.jsonl"
    paths = {"conductor": run.directory / "conductor", "model": run.directory / "model"}
    arguments = [f"--{name}={path}" for name, path in (paths | {"input": rollouts, "output": output}).items()]
    command = [sys.executable, "-m", "openrlhf_maestro", "weights", *arguments]
    subprocess.run(command, check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    names = json.loads((paths["conductor"] / "config.json").read_text())["reward_names"]
    table = pq.read_table(rollouts)
    logged = np.stack([table[f"pi_{name}"].to_numpy() for name in names], axis=1)
    lines = [json.loads(line)["weights"] for line in output.read_text(encoding="utf-8").splitlines()]
    found = np.array([[line[name] for name in names] for line in lines])
    assert np.ptp(logged, axis=0).max() > 0.01  # they differ between responses
    np.testing.assert_allclose(found, logged, rtol=0, atol=1e-5)
