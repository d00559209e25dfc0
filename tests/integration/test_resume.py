"""The same seed gives the same run, and a run that was killed in the middle ends as one that was not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.integration

KILLED_AFTER, STEPS = 3, 4


@dataclass
class Interrupted:
    """A run that was killed and continued."""

    steps_before: list[dict[str, Any]]  # metrics as they were at the kill
    rollouts_before: list[dict[str, list[Any]]]
    resumed: Any  # Run
    left_alive: list[Any]


@pytest.fixture(scope="module")
def interrupted(
    start: Callable[..., Any], finished: Callable[..., Any], main_options: dict[str, Any]
) -> Iterator[Interrupted]:
    run = start(main_options)
    run.wait_for_step(KILLED_AFTER)
    started = run.descendants()
    run.kill()
    steps = [line for line in run.steps() if line["step"] <= KILLED_AFTER]
    rollouts = [run.rollouts(step) for step in range(1, KILLED_AFTER + 1)]
    left = [process for process in started if process.is_running()]
    resumed = finished(main_options, directory=run.directory)
    yield Interrupted(steps, rollouts, resumed, left)


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not name.startswith("time/")}


def tolerance(name: str, usual: float = 1e-6) -> float:
    """What is itself the difference of two roundings, vLLM's and the trainer's, repeats to their size alone."""
    return 5e-5 if "logprob_diff" in name else usual


def close(one: Any, other: Any, tolerance: float = 1e-6) -> bool:
    """Equal, numbers to the tolerance."""
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=tolerance, abs=tolerance, nan_ok=True)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(close(*pair, tolerance) for pair in zip(one, other, strict=True))
    return bool(one == other)


def test_same_seed_same_run(main_run: Any, interrupted: Interrupted) -> None:
    """To the last bit, up to the kill."""
    assert [line["step"] for line in interrupted.steps_before] == [1, 2, 3]
    assert [*map(without_times, interrupted.steps_before)] == [*map(without_times, main_run.steps()[:KILLED_AFTER])]
    for step, rollouts in enumerate(interrupted.rollouts_before, start=1):
        # repr: NaN is not equal to itself.
        assert repr(rollouts) == repr(main_run.rollouts(step))


def test_the_kill_left_nothing_running(interrupted: Interrupted) -> None:
    assert not interrupted.left_alive


def test_resumed_metrics(main_run: Any, interrupted: Interrupted) -> None:
    resumed = interrupted.resumed.metrics()
    assert [line["step"] for line in resumed] == [0, 1, 2, 3, 4], "each step once, none lost"
    for line, expected in zip(resumed, main_run.metrics(), strict=True):
        line, expected = without_times(line), without_times(expected)
        assert line.keys() == expected.keys()
        differing = [name for name in line if not close(line[name], expected[name], tolerance(name))]
        assert not differing, f"step {expected['step']}"


def test_resumed_rollouts(main_run: Any, interrupted: Interrupted) -> None:
    """Texts, actions and ranks to the letter.

    Single responses differ by more than a step's means: DeepSpeed's CPU Adam multiplies beta^t up step by step,
    after a load it takes a power, and the last bit of the weights may differ.
    """
    for step in range(1, STEPS + 1):
        rollouts, expected = interrupted.resumed.rollouts(step), main_run.rollouts(step)
        differing = [name for name in expected if not close(rollouts[name], expected[name], tolerance(name, 5e-6))]
        assert not differing, f"step {step}"


@pytest.mark.parametrize("folder", ["model", "conductor"])
def test_resumed_weights(main_run: Any, interrupted: Interrupted, folder: str) -> None:
    final = load_file(interrupted.resumed.directory / folder / "model.safetensors")
    expected = load_file(main_run.directory / folder / "model.safetensors")
    assert final.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(final[name], tensor, rtol=0, atol=1e-6)


def test_it_did_resume(interrupted: Interrupted, main_run: Any) -> None:
    """Not started anew: the first steps' lines are those of the killed process, their timings too."""
    kept = interrupted.resumed.steps()[:2]
    assert kept == interrupted.steps_before[:2]
    assert not list(Path(interrupted.resumed.directory).parent.glob(f"{interrupted.resumed.directory.name}.*"))
    assert re.findall(r"^step +(\d)/4", interrupted.resumed.output, re.MULTILINE) == ["3", "4"]
