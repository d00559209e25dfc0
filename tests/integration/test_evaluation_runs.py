"""Runs that are evaluated between steps: what is kept, and what TensorBoard and Weights & Biases get."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.integration

STEPS = 4


@pytest.fixture(scope="module")
def evaluated(
    finished: Callable[..., Any], small_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Scores against the reference answer after every step, and one checkpoint."""
    return finished(
        small_options
        | {
            "run.name": "evaluated",
            "run.max_steps": STEPS,
            "actor.adam.lr": 3e-3,  # large: evaluations differ
            "eval.steps": 1,
            "eval.verdict": "reference",
            "eval.max_samples": 30,
            "eval.n_samples_per_prompt": 2,
            "ckpt.save_steps": 1,
            "ckpt.max_num": 1,
            "logger.tensorboard_dir": tmp_path_factory.mktemp("tensorboard"),
            "logger.wandb.mode": "offline",
        }
    )


def test_the_best_of_the_evaluations_is_kept(evaluated: Any) -> None:
    scores = {line["step"]: line["eval/overall/score"] for line in evaluated.steps()}
    assert sorted(scores) == list(range(1, STEPS + 1))
    best = max(scores, key=lambda step: (scores[step], -step))
    state = json.loads((evaluated.directory / "best" / "best.json").read_text())
    assert state == {"step": best, "metric": "eval/overall/score", "value": scores[best]}
    kept = {int(folder.name.removeprefix("global_step_")) for folder in (evaluated.directory / "checkpoints").iterdir()}
    assert kept == {best, STEPS}


def test_the_kept_model_is_that_of_its_step(evaluated: Any) -> None:
    """By the weights: those of the last step where that was the best, others where not; and it is a whole model."""
    folder = evaluated.directory / "best"
    best, last = (
        load_file(folder / "model" / "model.safetensors"),
        load_file(evaluated.directory / "model" / "model.safetensors"),
    )
    differ = any(not torch.equal(best[name], last[name]) for name in best)
    assert differ == (json.loads((folder / "best.json").read_text())["step"] != STEPS)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert model(**tokenizer("Name", return_tensors="pt")).logits.isfinite().all()
    assert (folder / "conductor" / "model.safetensors").is_file()


def test_tensorboard_has_every_number_of_metrics_jsonl(evaluated: Any) -> None:
    config = (evaluated.directory / "config.yaml").read_text()
    (folder,) = (line.split(": ")[1] for line in config.splitlines() if line.strip().startswith("tensorboard_dir"))
    events = EventAccumulator(str(Path(folder) / "evaluated"), size_guidance={"scalars": 0})
    events.Reload()
    found = {(name, event.step): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)}
    expected = {
        (name, line["step"]): pytest.approx(value, rel=1e-6)  # an event holds fp32
        for line in evaluated.metrics()
        for name, value in line.items()
        if name != "step" and value is not None
    }
    assert found == expected
    assert len(found) > 100


def test_wandb_leaves_its_files_in_the_run_directory_and_nothing_on_the_console(evaluated: Any) -> None:
    assert len(list(evaluated.directory.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    assert "wandb" not in evaluated.output + evaluated.stderr
