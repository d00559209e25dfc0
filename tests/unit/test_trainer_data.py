"""What is found out about configuration and rows before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.trainer.run import check_data


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
