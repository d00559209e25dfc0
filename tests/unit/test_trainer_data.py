"""What is found out about configuration and rows before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openrlhf_maestro.conductor import Conductor
from openrlhf_maestro.config.conductor import ConductorSection
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.trainer.run import check_data, check_initial_conductor
from openrlhf_maestro.trainer.run_dir import RunDir


def make_config(folder: Path, components: list[dict[str, Any]]) -> MaestroConfig:
    file = folder / "rows.jsonl"
    rows = [{"prompt": f"p{row}", "reference": "r", "datasource": ("sums", "stories")[row % 2]} for row in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return MaestroConfig.model_validate(
        {
            "actor": {"model_name_or_path": "policy"},
            "data": {"prompt_dataset": str(file)},
            "rewards": {"components": [{"kind": "format"}, *components]},
            "rollout": {"batch_size": 2, "n_samples_per_prompt": 2},
            "train": {"batch_size": 4},
        }
    )


def test_parameters_for_a_data_source_that_no_row_is_of_are_refused(tmp_path: Path) -> None:
    length = {"kind": "length", "by_datasource": {"stories": {"l_max": 9}, "sumz": {"l_max": 9}}}
    with pytest.raises(ConfigError, match=r"`length` component: by_datasource names sumz.*There are stories, sums"):
        check_data(make_config(tmp_path, [length]))


def test_parameters_for_data_sources_there_are_are_accepted(tmp_path: Path) -> None:
    length = {"kind": "length", "by_datasource": {"stories": {"l_max": 9}}}
    assert len(check_data(make_config(tmp_path, [length])).train) == 8


# ── what the evaluation names ──


def evaluated(folder: Path, **options: Any) -> MaestroConfig:
    """With the rows of training as held-out ones: of `sums` and `stories`."""
    config = make_config(folder, [{"kind": "length"}])
    evaluation = {"dataset": config.data.prompt_dataset, "steps": 1, "verdict": "judge"}
    judge = {"model": "m"} | options.pop("judge", {})
    return MaestroConfig.model_validate(config.model_dump() | {"eval": evaluation | {"judge": judge}} | options)


@pytest.mark.parametrize("key", ["auto", "none", "eval/sums/accuracy", "eval/overall/score"])
def test_a_best_metric_that_evaluations_have_is_accepted(tmp_path: Path, key: str) -> None:
    assert len(check_data(evaluated(tmp_path, ckpt={"best_metric_key": key})).held_out or ()) == 8


def test_a_best_metric_of_a_data_set_that_is_not_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"best_metric_key: eval/sumz/accuracy .* There are stories, sums"):
        check_data(evaluated(tmp_path, ckpt={"best_metric_key": "eval/sumz/accuracy"}))


def test_a_judges_prompt_for_a_data_set_that_is_not_evaluated_is_refused(tmp_path: Path) -> None:
    check_data(evaluated(tmp_path, judge={"by_datasource": {"stories": {"prompt": "creative"}}}))
    with pytest.raises(ConfigError, match=r"eval\.judge\.by_datasource names storys.* There are stories, sums"):
        check_data(evaluated(tmp_path, judge={"by_datasource": {"storys": {"prompt": "creative"}}}))


# ── a Conductor from elsewhere ──


def with_conductor(folder: Path, source: Path, **options: Any) -> MaestroConfig:
    config = make_config(folder, [{"kind": "length"}])
    return config.model_copy(update={"conductor": ConductorSection(init_from=str(source), **options)})


def test_an_initial_conductor_of_these_rewards_and_context_is_accepted(tmp_path: Path) -> None:
    Conductor(8, ["format", "length"]).save_pretrained(tmp_path / "conductor")
    check_initial_conductor(with_conductor(tmp_path, tmp_path / "conductor"), RunDir(tmp_path / "run"))


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["format", "judge"], {}, "reward_names"),
        (["format", "length"], {"context_layer": "middle"}, "context_layer"),
        (["format", "length"], {"context_pooling": "mean"}, "context_pooling"),
    ],
)
def test_an_initial_conductor_of_something_else_is_refused_by_the_field(
    tmp_path: Path, names: list[str], options: dict[str, Any], message: str
) -> None:
    Conductor(8, names).save_pretrained(tmp_path / "conductor")
    config = with_conductor(tmp_path, tmp_path / "conductor", **options)
    with pytest.raises(ConfigError, match=rf"conductor\.init_from.*{message}"):
        check_initial_conductor(config, RunDir(tmp_path / "run"))


def test_an_initial_conductor_that_is_not_there_or_would_be_moved_away_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        check_initial_conductor(with_conductor(tmp_path, tmp_path / "absent"), RunDir(tmp_path / "run"))
    own = tmp_path / "run" / "conductor"
    Conductor(8, ["format", "length"]).save_pretrained(own)
    with pytest.raises(ConfigError, match="moved aside"):
        check_initial_conductor(with_conductor(tmp_path, own), RunDir(tmp_path / "run"))


def test_rows_without_what_the_anchor_needs_stay(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"p{row}"} | ({"reference": "r"} if row % 2 else {}) for row in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = MaestroConfig.model_validate(
        {
            "actor": {"model_name_or_path": "policy"},
            "data": {"prompt_dataset": str(file)},
            "rewards": {"components": [{"kind": "format"}, {"kind": "length"}, {"kind": "match", "anchor": True}]},
            "conductor": {"credit": "anchor"},
            "rollout": {"batch_size": 2, "n_samples_per_prompt": 2},
            "train": {"batch_size": 4},
        }
    )
    assert len(check_data(config).train) == 8
