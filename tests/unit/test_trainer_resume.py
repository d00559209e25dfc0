"""Which checkpoint a run continues from, and which it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.trainer.resume import STATE, find_checkpoint, fingerprint


def make_config(**changes: Any) -> MaestroConfig:
    """Sections of the configuration, changed option by option: make_config(train={"seed": 1})."""
    values: dict[str, dict[str, Any]] = {
        "run": {},
        "actor": {"model_name_or_path": "policy", "num_gpus_per_node": 2},
        "ref": {"num_gpus_per_node": 1},
        "reward": {},
        "data": {"prompt_dataset": "rows.jsonl"},
        "rewards": {"components": [{"kind": "format"}, {"kind": "length"}]},
        "rollout": {"batch_size": 6, "n_samples_per_prompt": 4},
        "train": {"batch_size": 24},
        "conductor": {},
        "ds": {},
        "algo": {},
    }
    for section, options in changes.items():
        values[section] |= options
    return MaestroConfig.model_validate(values)


def save(folder: Path, step: int, config: MaestroConfig) -> Path:
    path = folder / f"global_step_{step}"
    path.mkdir(parents=True)
    (path / STATE).write_text(json.dumps({"step": step, "batches_drawn": step} | fingerprint(config)))
    return path


def test_nothing_to_continue_from(tmp_path: Path) -> None:
    assert find_checkpoint(make_config(), tmp_path / "checkpoints") is None


def test_auto_takes_the_newest_by_number(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        save(tmp_path, step, make_config())
    found = find_checkpoint(make_config(), tmp_path)
    assert found is not None and (found.step, found.path.name) == (10, "global_step_10")


def test_auto_passes_over_what_is_not_whole(tmp_path: Path) -> None:
    save(tmp_path, 4, make_config())
    (tmp_path / "global_step_8").mkdir()
    (tmp_path / ".global_step_12.partial").mkdir()
    found = find_checkpoint(make_config(), tmp_path)
    assert found is not None and found.step == 4


def test_never_starts_anew(tmp_path: Path) -> None:
    save(tmp_path, 4, make_config())
    assert find_checkpoint(make_config(run={"resume": "never"}), tmp_path) is None


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "elsewhere", 3, make_config())
    save(tmp_path / "own", 9, make_config())
    found = find_checkpoint(make_config(run={"resume": str(path)}), tmp_path / "own")
    assert found is not None and found.step == 3


def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a checkpoint"):
        find_checkpoint(make_config(run={"resume": str(tmp_path)}), tmp_path)


CHANGES: dict[str, dict[str, Any]] = {
    "actor.model_name_or_path": {"actor": {"model_name_or_path": "another"}},
    "actor.num_gpus_per_node": {"actor": {"num_gpus_per_node": 1}},
    "ref.num_gpus_per_node": {"ref": {"num_gpus_per_node": 2}},
    "ds.zero_stage": {"ds": {"zero_stage": 2}},
    "data.prompt_dataset": {"data": {"prompt_dataset": "others.jsonl"}},
    "data.prompt_probs": {"data": {"prompt_dataset": "rows.jsonl", "prompt_probs": "1"}},
    "train.seed": {"train": {"seed": 1}},
    "rollout.batch_size": {"rollout": {"batch_size": 12}},
    "rollout.n_samples_per_prompt": {"rollout": {"n_samples_per_prompt": 8}},
    "rewards.components": {"rewards": {"components": [{"kind": "length"}, {"kind": "format"}]}},
    "conductor.kind": {"conductor": {"kind": "equal"}},
}


@pytest.mark.parametrize("option", CHANGES)
def test_another_run_s_checkpoint_is_refused_by_the_option_s_name(tmp_path: Path, option: str) -> None:
    save(tmp_path, 4, make_config())
    with pytest.raises(ConfigError) as refusal:
        find_checkpoint(make_config(**CHANGES[option]), tmp_path)
    assert option in str(refusal.value)
    assert "global_step_4" in str(refusal.value)


def test_the_reference_s_ranks_do_not_matter_without_a_reference(tmp_path: Path) -> None:
    without = {"algo": {"kl": {"init_coef": 0}}}
    save(tmp_path, 4, make_config(**without))
    found = find_checkpoint(make_config(**without, ref={"num_gpus_per_node": 8}), tmp_path)
    assert found is not None


def test_what_does_not_shape_a_checkpoint_may_change(tmp_path: Path) -> None:
    save(tmp_path, 4, make_config())
    found = find_checkpoint(make_config(run={"max_steps": 99}, actor={"adam": {"lr": 1e-3}}), tmp_path)
    assert found is not None


def test_a_checkpoint_of_another_run_does_not_continue_this_one(tmp_path: Path) -> None:
    """Its folder says so: only a run's own checkpoint lets the run write on where it was."""
    config = make_config()
    save(tmp_path / "other" / "checkpoints", 4, config)
    path = str(tmp_path / "other" / "checkpoints" / "global_step_4")
    found = find_checkpoint(make_config(run={"resume": path}), tmp_path / "mine" / "checkpoints")
    assert found is not None and found.step == 4
    assert found.is_in(tmp_path / "other" / "checkpoints")
    assert not found.is_in(tmp_path / "mine" / "checkpoints")


def test_a_checkpoint_of_an_earlier_version_is_refused_by_the_fields_name(tmp_path: Path) -> None:
    path = save(tmp_path, 4, make_config())
    state = json.loads((path / STATE).read_text())
    del state["batches_drawn"]
    (path / STATE).write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="batches_drawn"):
        find_checkpoint(make_config(), tmp_path)
