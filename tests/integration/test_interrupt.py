"""Ctrl-C in the middle of training: a short word, and nothing is left behind."""

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
LIMIT_S = 20
INTERRUPTED = 130


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


@pytest.fixture(scope="module")
def aftermath(start: Callable[..., Any], main_options: dict[str, Any]) -> Aftermath:
    before = names_in_shared_memory()
    run = start(main_options | {"run.max_steps": 400, "train.seed": 7, "ckpt.save_steps": -1})
    run.wait_for_step(3)
    assert any(name.startswith(f"maestro-weights-{run.process.pid}-") for name in names_in_shared_memory())
    processes = run.descendants()
    used = used_by(processes)
    began = time.monotonic()
    # A terminal sends it to the whole foreground group.
    os.killpg(run.process.pid, signal.SIGINT)
    code = run.wait(timeout_s=120)
    took_s = time.monotonic() - began
    _, alive = psutil.wait_procs(processes, timeout=10)
    return Aftermath(run, code, took_s, alive, before, used)


def test_exit_code_and_time(aftermath: Aftermath) -> None:
    assert aftermath.exit_code == INTERRUPTED, aftermath.run.stderr
    assert aftermath.took_s < LIMIT_S


def test_last_words_are_short(aftermath: Aftermath) -> None:
    assert "Traceback" not in aftermath.run.stderr
    assert aftermath.run.stderr.strip().splitlines()[-1] == "maestro: interrupted"


def test_no_process_is_left(aftermath: Aftermath) -> None:
    assert aftermath.left_alive == []


def test_no_shared_memory_is_left(aftermath: Aftermath) -> None:
    new = names_in_shared_memory() - aftermath.shared_memory_before
    # Others on this machine may have made files of their own meanwhile.
    assert new & aftermath.shared_memory_used == set()
    assert not [name for name in new if name.startswith(f"maestro-weights-{aftermath.run.process.pid}-")]


def test_what_was_written_is_whole(aftermath: Aftermath) -> None:
    steps = [line["step"] for line in aftermath.run.steps()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 3
    assert not list(aftermath.run.directory.rglob("*.partial"))
    assert len(list((aftermath.run.directory / "rollouts").iterdir())) in (len(steps), len(steps) + 1)


def test_another_seed_is_another_run(main_run: Any, aftermath: Aftermath) -> None:
    """This run's seed is not `main_run`'s, everything else of the first step is."""
    ours, theirs = aftermath.run.rollouts(1), main_run.rollouts(1)
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
