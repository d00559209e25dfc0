"""The Conductor's options in runs: a trusted anchor, the joint schedule, another context, one from elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.integration

COMPONENTS = [{"kind": "format"}, {"kind": "entropy"}, {"kind": "length"}]
SHARE = 0.5


def options(base: dict[str, Any], components: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return (
        base
        | {
            "rewards.components": json.dumps(components),
            "reward.model_name_or_path": "null",
            "algo.kl.init_coef": 0,
            "eval.dataset": "null",
            "ckpt.save_steps": -1,
            "conductor.update_steps": 1,
        }
        | {name.replace("__", "."): value for name, value in changes.items()}
    )


def weights(line: dict[str, Any]) -> list[float]:
    return [line[f"conductor/weight/{part['kind']}"] for part in COMPONENTS]


# ── anchor ──


@pytest.fixture(scope="module")
def anchored(finished: Callable[..., Any], main_options: dict[str, Any]) -> Any:
    """The bundled tasks' rule is the trusted signal, on half of the groups."""
    return finished(
        options(
            main_options,
            [*COMPONENTS, {"kind": "rule", "anchor": True}],
            conductor__credit="anchor",
            conductor__anchor_share=SHARE,
        )
    )


def test_the_anchor_scores_its_share_of_the_groups_whole(anchored: Any) -> None:
    chosen = []
    for step in range(1, 5):
        rollouts = anchored.rollouts(step)
        groups: dict[int, set[bool]] = {}
        for group, value in zip(rollouts["group"], rollouts["anchor"], strict=True):
            assert math.isnan(value) or value in (0.0, 1.0)
            groups.setdefault(group, set()).add(not math.isnan(value))
        assert all(len(scored) == 1 for scored in groups.values())
        chosen.append(sorted(group for group, scored in groups.items() if scored == {True}))
        assert len(chosen[-1]) == SHARE * len(groups)
    assert len({tuple(groups) for groups in chosen}) > 1, "drawn anew every step"


def test_the_anchor_is_no_part_of_the_reward(anchored: Any) -> None:
    rollouts = anchored.rollouts(2)
    assert "raw_rule" not in rollouts and "weight_rule" not in rollouts
    names = [part["kind"] for part in COMPONENTS]
    for row in range(len(rollouts["scalar_reward"])):
        expected = sum(rollouts[f"weight_{name}"][row] * rollouts[f"norm_{name}"][row] for name in names)
        assert rollouts["scalar_reward"][row] == pytest.approx(expected, abs=1e-5)
        assert rollouts["action"][row] is None, "an exact expectation needs no draw"


def test_the_conductor_learns_from_the_anchor(anchored: Any) -> None:
    steps = anchored.steps()
    assert [line["conductor/updates"] for line in steps][-1] > 0
    assert any(line["conductor/meta_reward"] is not None for line in steps)
    assert weights(steps[0]) == pytest.approx([1 / 3] * 3)
    assert weights(steps[-1]) != pytest.approx([1 / 3] * 3, abs=1e-4)
    assert all(0 < line["conductor/anchor/scored_rate"] <= SHARE for line in steps)


# ── joint ──


def test_a_joint_run_with_another_context_updates_every_step_and_samples_nothing(
    finished: Callable[..., Any], main_options: dict[str, Any]
) -> None:
    run = finished(
        options(
            main_options,
            COMPONENTS,
            conductor__schedule="joint",
            conductor__context_layer="middle",
            conductor__context_pooling="mean",
        )
    )
    steps = run.steps()
    assert [line["conductor/updates"] for line in steps] == [1, 2, 3, 4]
    assert set(run.rollouts(1)["action"]) == {None}
    for name in ("format", "entropy", "length"):
        assert run.rollouts(3)[f"weight_{name}"] == run.rollouts(3)[f"pi_{name}"], "w = pi"
    assert weights(steps[-1]) != pytest.approx([1 / 3] * 3, abs=1e-5)
    config = json.loads((run.directory / "conductor" / "config.json").read_text())
    assert (config["context_layer"], config["context_pooling"]) == ("middle", "mean")


# ── a Conductor from elsewhere ──


def test_a_frozen_conductor_stays_as_it_is(
    anchored: Any, finished: Callable[..., Any], main_options: dict[str, Any]
) -> None:
    source = anchored.directory / "conductor"
    run = finished(
        options(main_options, COMPONENTS, conductor__init_from=source, conductor__freeze="true", run__max_steps=2)
    )
    assert (run.directory / "conductor" / "model.safetensors").read_bytes() == (
        source / "model.safetensors"
    ).read_bytes()
    assert [line["conductor/updates"] for line in run.steps()] == [0, 0]
    # The same prompts and the same policy as in the first step of its own run, but its last weights.
    assert weights(run.steps()[0]) != pytest.approx([1 / 3] * 3, abs=1e-4)


def test_a_conductor_of_other_rewards_is_refused(
    anchored: Any, start: Callable[..., Any], main_options: dict[str, Any]
) -> None:
    run = start(
        options(main_options, COMPONENTS[:2], conductor__init_from=anchored.directory / "conductor", run__max_steps=1)
    )
    assert run.wait() == 2
    assert "conductor.init_from" in run.stderr and "reward_names" in run.stderr and "Traceback" not in run.stderr
