"""Signals in the middle of training: the first ends it after the step, the second at once; nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.integration

SHARED_MEMORY = Path("/dev/shm")
LIMIT_S = 60  # seconds, on a busy machine
INTERRUPTED = 130
HEARD = "finishing this step"


@dataclass
class Aftermath:
    run: Any  # Run
    exit_code: int
    took_s: float
    left_alive: list[psutil.Process]
    shared_memory_before: set[str]
    shared_memory_used: set[str]  # names that processes of the run had mapped or open


def names_in_shared_memory() -> set[str]:
    return {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()


def used_by(processes: list[psutil.Process]) -> set[str]:
    """First path component under /dev/shm of every file that a process has mapped or open."""
    paths: set[str] = set()
    for process in processes:
        folder = Path("/proc") / str(process.pid)
        try:
            paths.update(line.split(maxsplit=5)[-1] for line in (folder / "maps").read_text().splitlines())
            paths.update(os.readlink(link) for link in (folder / "fd").iterdir())
        except (OSError, psutil.NoSuchProcess):
            continue  # it ended meanwhile
    prefix = f"{SHARED_MEMORY}/"
    return {path.removeprefix(prefix).split("/")[0].strip() for path in paths if path.startswith(prefix)}


def stopped_by(start: Callable[..., Any], options: dict[str, Any], *signals: signal.Signals) -> Aftermath:
    """A run after step 3: the signals one after another, each after the word that the one before was heard."""
    before = names_in_shared_memory()
    run = start(options | {"run.max_steps": 400, "train.seed": 7, "ckpt.save_steps": -1})
    run.wait_for_step(3)
    assert any(name.startswith(f"maestro-weights-{run.process.pid}-") for name in names_in_shared_memory())
    processes = run.descendants()
    used = used_by(processes)
    began = time.monotonic()
    for index, number in enumerate(signals):
        while index and HEARD not in run.stderr:
            assert time.monotonic() - began < LIMIT_S, run.stderr
            time.sleep(0.01)
        # A terminal sends SIGINT to the whole foreground group, and Slurm SIGUSR1 to all processes of a step.
        os.killpg(run.process.pid, number)
    code = run.wait(timeout_s=120)
    took_s = time.monotonic() - began
    _, alive = psutil.wait_procs(processes, timeout=10)
    return Aftermath(run, code, took_s, alive, before, used)


# What is sent, and the exit code.
WAYS = {"at once": ((signal.SIGINT, signal.SIGINT), INTERRUPTED), "after the step": ((signal.SIGUSR1,), 0)}


@pytest.fixture(scope="module", params=WAYS)
def stopped(request: pytest.FixtureRequest, start: Callable[..., Any], main_options: dict[str, Any]) -> Aftermath:
    # An evaluation makes steps long enough for a second signal in the same one.
    return stopped_by(start, main_options | {"eval.steps": 1, "eval.max_samples": 200}, *WAYS[request.param][0])


def test_exit_code_and_time(request: pytest.FixtureRequest, stopped: Aftermath) -> None:
    way = request.node.callspec.params["stopped"]
    assert stopped.exit_code == WAYS[way][1], stopped.run.stderr
    assert stopped.took_s < LIMIT_S


def test_last_words_are_short(stopped: Aftermath) -> None:
    assert "Traceback" not in stopped.run.stderr
    heard, *rest = stopped.run.stderr.strip().splitlines()
    assert HEARD in heard
    assert rest == (["maestro: interrupted"] if stopped.exit_code else [])


def test_a_run_that_finished_its_step_has_a_checkpoint(stopped: Aftermath) -> None:
    """Of the last step that was done, although none was asked for (ckpt.save_steps -1)."""
    last = stopped.run.steps()[-1]["step"]
    saved = [folder.name for folder in (stopped.run.directory / "checkpoints").glob("global_step_*")]
    if stopped.exit_code:
        assert saved == []
        return
    assert saved == [f"global_step_{last}"]
    assert f"stopped after step {last} of 400 as asked; --run.resume auto goes on" in stopped.run.output
    assert not (stopped.run.directory / "model").exists()
    assert (stopped.run.directory / "report.html").is_file()


def test_no_process_is_left(stopped: Aftermath) -> None:
    assert stopped.left_alive == []


def test_no_shared_memory_is_left(stopped: Aftermath) -> None:
    new = names_in_shared_memory() - stopped.shared_memory_before
    # Others on this machine may have made files of their own meanwhile.
    assert new & stopped.shared_memory_used == set()
    assert not [name for name in new if name.startswith(f"maestro-weights-{stopped.run.process.pid}-")]


def test_what_was_written_is_whole(stopped: Aftermath) -> None:
    steps = [line["step"] for line in stopped.run.steps()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 3
    assert not list(stopped.run.directory.rglob("*.partial"))
    assert len(list((stopped.run.directory / "rollouts").iterdir())) in (len(steps), len(steps) + 1)


def test_another_seed_is_another_run(main_run: Any, stopped: Aftermath) -> None:
    """This run's seed is not `main_run`'s, everything else of the first step is."""
    ours, theirs = stopped.run.rollouts(1), main_run.rollouts(1)
    assert ours["prompt"] != theirs["prompt"]
    assert ours["response"] != theirs["response"]


def test_nothing_is_left_of_a_start_that_was_interrupted(
    start: Callable[..., Any], main_options: dict[str, Any]
) -> None:
    """While models are being loaded, when vLLM's own process is there and the engine not yet ready."""
    run = start(main_options)
    deadline = time.monotonic() + 120
    while not any(is_engine(process) for process in run.descendants()):
        assert run.process.poll() is None and time.monotonic() < deadline, run.output + run.stderr
        time.sleep(0.1)
    processes = run.descendants()
    used = used_by(processes)
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait(timeout_s=60) == INTERRUPTED
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
    assert names_in_shared_memory() & used == set()
    assert "Traceback" not in run.stderr


def is_engine(process: psutil.Process) -> bool:
    try:
        return "EngineCore" in " ".join([process.name(), *process.cmdline()])
    except psutil.NoSuchProcess:
        return False
