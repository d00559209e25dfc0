"""Combinations that cannot work on this device or in this placement are refused, by the option's name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.upstream.device import check_device_options


def make_config(**sections: Any) -> MaestroConfig:
    base: dict[str, Any] = {
        "actor": {"model_name_or_path": "policy"},
        "reward": {"model_name_or_path": "preference"},
        "data": {"prompt_dataset": "rows.jsonl"},
    }
    return MaestroConfig.model_validate(base | sections)


def test_the_smallest_configuration_is_accepted() -> None:
    check_device_options(make_config(), "cpu")
    assert make_config().notes() == []


@pytest.mark.parametrize(
    ("sections", "option"),
    [
        ({"ds": {"param_dtype": "bf16"}}, "ds.param_dtype"),
        ({"ds": {"attn_implementation": "flash_attention_2"}}, "ds.attn_implementation"),
        ({"vllm": {"enable_sleep": True}, "train": {"colocate_all": True}}, "vllm.enable_sleep"),
    ],
)
def test_what_a_cpu_cannot_do(sections: dict[str, Any], option: str) -> None:
    config = make_config(**sections)
    with pytest.raises(ConfigError, match=option):
        check_device_options(config, "cpu")
    check_device_options(config, "cuda")


def test_a_kind_of_component_is_used_once() -> None:
    components = [{"kind": "length"}, {"kind": "length", "name": "short", "l_max": 10}]
    with pytest.raises(ValidationError, match="two components are of kind length"):
        make_config(rewards={"components": components})


def test_a_colocated_preference_model_has_at_most_as_many_ranks_as_the_policy() -> None:
    with pytest.raises(ValidationError, match=r"train\.colocate_all has a place for 1 ranks"):
        make_config(train={"colocate_all": True}, reward={"model_name_or_path": "preference", "num_gpus_per_node": 2})
