"""Runs that are evaluated between steps: what is kept, and what TensorBoard and Weights & Biases get."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


class Judge(BaseHTTPRequestHandler):
    """Says True to everything; a real language model does so in test_chain.py."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"index": 0, "message": {"role": "assistant", "content": "True"}, "finish_reason": "stop"}
        body = json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_judge_that_goes_away_costs_no_step(start: Callable[..., Any], small_options: dict[str, Any]) -> None:
    """It answers before the first step and is gone after the last: everything trained is there, and the run goes on."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    judge = {"model": "judge", "api_key_env": "null", "base_url": f"http://127.0.0.1:{server.server_port}/v1"}
    judge |= {"votes": 1, "retry_s": 0.1, "max_failures": 1}
    options = small_options | {"run.max_steps": 8, "eval.verdict": "judge", "eval.max_samples": 5}
    options |= {f"eval.judge.{name}": value for name, value in judge.items()}
    run = start(options)
    try:
        run.wait_for_step(1)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert run.wait() == 1, run.output
    assert run.metrics()[0]["eval/overall/accuracy"] == 1.0
    assert "cannot be reached" in run.stderr and "Traceback" not in run.stderr
    assert [line["step"] for line in run.steps()] == list(range(1, 9))
    assert (run.directory / "checkpoints" / "global_step_8").is_dir()
    assert not (run.directory / "model").exists()
    again = start(options, directory=run.directory)
    assert again.wait() == 0, again.stderr
    assert (run.directory / "model" / "model.safetensors").is_file()
