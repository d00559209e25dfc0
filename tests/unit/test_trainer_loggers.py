"""TensorBoard and Weights & Biases get every finite number of a step, under its name, at its step."""

from __future__ import annotations

import json
import math
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.trainer.loggers import make_loggers

STEPS = {
    0: {"eval/overall/accuracy": 0.5},
    1: {"reward/scalar_mean": 0.25, "policy/kl": 0.0, "conductor/meta_loss": math.nan},
    2: {"reward/scalar_mean": 0.75, "policy/kl": 1e-3, "conductor/meta_loss": -2.0},
}


GIVEN = {
    "run.name": "one",
    "actor.model_name_or_path": "model",
    "data.prompt_dataset": "rows.jsonl",
    "rewards.components": "[{kind: format}, {kind: length}]",
    "rollout.n_samples_per_prompt": 6,
    "rollout.batch_size": 6,
    "rollout.micro_batch_size": 1,
    "train.batch_size": 36,
    "train.micro_batch_size": 1,
}


def words(**options: Any) -> list[str]:
    return [word for name, value in (GIVEN | options).items() for word in (f"--{name}", str(value))]


def config(**options: Any) -> MaestroConfig:
    return load_config(MaestroConfig, words(**options))


def log_all(settings: MaestroConfig, folder: Path, steps: dict[int, dict[str, float]], done: int = 0) -> None:
    loggers = make_loggers(settings, folder, done)
    for step, metrics in steps.items():
        loggers.log(step, metrics)
    loggers.close()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_nothing_is_written_by_default(tmp_path: Path) -> None:
    log_all(config(), tmp_path, STEPS)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_every_finite_number(tmp_path: Path) -> None:
    log_all(config(**{"logger.tensorboard_dir": tmp_path / "tb"}), tmp_path, STEPS)
    found = scalars(tmp_path / "tb" / "one")
    assert found == {
        "eval/overall/accuracy": [(0, 0.5)],
        "reward/scalar_mean": [(1, 0.25), (2, 0.75)],
        "policy/kl": [(1, 0.0), (2, pytest.approx(1e-3))],
        "conductor/meta_loss": [(2, -2.0)],
    }


def test_what_a_resume_runs_again_is_shown_once(tmp_path: Path) -> None:
    settings = config(**{"logger.tensorboard_dir": tmp_path / "tb"})
    log_all(settings, tmp_path, {step: {"policy/kl": float(step)} for step in (1, 2, 3)})
    log_all(settings, tmp_path, {step: {"policy/kl": 10.0 * step} for step in (3, 4)}, done=2)
    assert scalars(tmp_path / "tb" / "one") == {"policy/kl": [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]}


def test_tensorboard_hides_an_earlier_run_of_the_name(tmp_path: Path) -> None:
    settings = config(**{"logger.tensorboard_dir": tmp_path / "tb"})
    log_all(settings, tmp_path, {step: {"policy/kl": float(step)} for step in (0, 1, 2, 3)})
    log_all(settings, tmp_path, {step: {"policy/kl": 10.0 * step} for step in (0, 1)})
    assert scalars(tmp_path / "tb" / "one") == {"policy/kl": [(0, 0.0), (1, 10.0)]}


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of the file that `wandb sync` sends: LevelDB's log format after a header of 7 bytes."""
    data, position, record = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # too little for a header: padding up to the next block
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if position + 7 + length > len(data):  # still being written
            return
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def whole_wandb_records(file: Path) -> list[Any]:
    """All records, the last of which says that the run is over: W&B's own process writes them a moment later."""
    from wandb.proto import wandb_internal_pb2

    for _ in range(100):
        records = [wandb_internal_pb2.Record.FromString(data) for data in wandb_records(file)]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{file} has no end")


def wandb_run(folder: Path) -> tuple[str, list[dict[str, float]], dict[str, Any]]:
    """Id, history and configuration of the newest offline run."""
    run_id, history, settings = "", [], {}
    for record in whole_wandb_records(sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))[-1]):
        if record.run.run_id:
            run_id = record.run.run_id
            settings = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.history.item:
            row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            history.append({name: json.loads(value) for name, value in row.items()})
    return run_id, history, settings


def test_wandb_has_every_finite_number_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    log_all(config(**{"logger.wandb.mode": "offline"}), tmp_path, STEPS)
    run_id, history, settings = wandb_run(tmp_path)
    assert [{name: value for name, value in row.items() if not name.startswith("_")} for row in history] == [
        {"step": 0, "eval/overall/accuracy": 0.5},
        {"step": 1, "reward/scalar_mean": 0.25, "policy/kl": 0.0},
        {"step": 2, "reward/scalar_mean": 0.75, "policy/kl": 1e-3, "conductor/meta_loss": -2.0},
    ]
    assert settings["run"]["name"] == "one"
    assert run_id == (tmp_path / "wandb_id").read_text()
    assert not any(b"k" * 40 in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_wandb_gets_what_a_resume_runs_again(tmp_path: Path) -> None:
    settings = config(**{"logger.wandb.mode": "offline"})
    log_all(settings, tmp_path, {step: {"policy/kl": float(step)} for step in (1, 2, 3)})
    first = wandb_run(tmp_path)[0]
    log_all(settings, tmp_path, {step: {"policy/kl": 10.0 * step} for step in (3, 4)}, done=2)
    run_id, history, _ = wandb_run(tmp_path)
    assert run_id == first
    assert [(row["step"], row["policy/kl"]) for row in history] == [(3, 30.0), (4, 40.0)]


def test_without_a_key_online_is_refused_by_name(tmp_path: Path) -> None:
    """By the whole command, in a process of its own: wandb remembers keys that it has seen in this one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    code = (
        "import sys; from pathlib import Path; from openrlhf_maestro.config.load import load_config;"
        "from openrlhf_maestro.config.schema import MaestroConfig; from openrlhf_maestro.trainer.loggers import *;"
        "make_loggers(load_config(MaestroConfig, sys.argv[2:]), Path(sys.argv[1]), 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *words(**{"logger.wandb.mode": "online"})],
        env=environment | {"NETRC": str(tmp_path / "netrc"), "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert re.search(r"ConfigError: logger\.wandb: .*Set WANDB_API_KEY, or logger\.wandb\.mode", done.stderr)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "tb").write_text("a file")
    with pytest.raises(ConfigError, match=r"logger\.tensorboard_dir: .*tb/one cannot be written"):
        make_loggers(config(**{"logger.tensorboard_dir": tmp_path / "tb"}), tmp_path, 0)
