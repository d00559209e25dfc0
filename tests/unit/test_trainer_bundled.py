"""Names of bundled models, without making any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.trainer import bundled


def make_config(assets: Path, policy: str, preference: str | None = None) -> MaestroConfig:
    components: list[dict[str, Any]] = [{"kind": "format"}, {"kind": "preference" if preference else "length"}]
    return MaestroConfig.model_validate(
        {
            "run": {"assets_dir": str(assets)},
            "actor": {"model_name_or_path": policy, "num_gpus_per_node": 1},
            "ref": {"num_gpus_per_node": 1},
            "reward": {"model_name_or_path": preference, "num_gpus_per_node": 1},
            "data": {"prompt_dataset": "rows.jsonl"},
            "rewards": {"components": components},
        }
    )


def test_models_of_one_s_own_are_left_alone(tmp_path: Path) -> None:
    config = make_config(tmp_path, "org/policy", "org/preference")
    assert bundled.missing_models(config) == []
    assert bundled.make_models(config) == config
    assert not list(tmp_path.iterdir())


def test_missing_models_are_named(tmp_path: Path) -> None:
    config = make_config(tmp_path, "bundled:policy", "bundled:preference")
    assert bundled.missing_models(config) == ["bundled:policy", "bundled:preference"]


def test_another_name_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        bundled.missing_models(make_config(tmp_path, "bundled:polcy"))
    for name in ("bundled:polcy", "bundled:policy", "bundled:policy_untied", "bundled:preference"):
        assert name in str(refusal.value)


def test_a_made_policy_is_used_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cold_start(base: str, target: Path, _assets_dir: str) -> None:
        made.append((base, target))
        target.mkdir(parents=True)

    made: list[tuple[str, Path]] = []
    monkeypatch.setattr(bundled, "_cold_start", cold_start)
    config = make_config(tmp_path, "bundled:policy_untied")
    paths = {bundled.make_models(config).actor.model_name_or_path for _ in range(2)}
    assert [base for base, _ in made] == ["policy_base_untied"]
    assert paths == {str(made[0][1])}
    assert bundled.missing_models(config) == []


def test_another_recipe_is_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    monkeypatch.setattr(bundled, "_cold_start", lambda _base, target, _assets: folders.append(target))
    for lr in (1e-3, 2e-3):
        monkeypatch.setitem(bundled.COLD_START, "adam", {"lr": lr})
        bundled.make_models(make_config(tmp_path, "bundled:policy"))
    assert len(set(folders)) == 2


def test_a_failure_names_the_log_and_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "_RANDOM", "import sys; sys.exit('cannot read ' + sys.argv[1])")
    config = make_config(tmp_path, str(tmp_path / "no_such_model"))
    config = config.model_copy(update={"actor": config.actor.model_copy(update={"random_init": {}})})
    with pytest.raises(bundled.RunError) as failure:
        bundled.make_models(config)
    log = next(tmp_path.glob("*.log"))
    assert str(log) in str(failure.value) and "no_such_model" in log.read_text()
    assert [path.name for path in tmp_path.iterdir()] == [log.name]


def test_bundled_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").touch()
    monkeypatch.setattr(bundled, "ensure_asset", lambda name, _directory: tmp_path)
    assert bundled.bundled_dataset("bundled:tasks", "test", "assets") == str(tmp_path / "test.jsonl")
    assert bundled.bundled_dataset("mine.csv", "test", "assets") == "mine.csv"
    with pytest.raises(ConfigError, match=r"tset.*test, train"):
        bundled.bundled_dataset("bundled:tasks", "tset", "assets")
