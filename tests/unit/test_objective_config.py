"""Options of the objective: combinations that have no meaning are refused, those without effect are noted."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from openrlhf_maestro.config.schema import MaestroConfig


def make_config(**sections: Any) -> MaestroConfig:
    base: dict[str, Any] = {
        "actor": {"model_name_or_path": "policy"},
        "reward": {"model_name_or_path": "preference"},
        "data": {"prompt_dataset": "rows.jsonl"},
    }
    return MaestroConfig.model_validate(base | sections)


def correction(level: str, mode: str, gating: str, threshold: list[float]) -> dict[str, Any]:
    values = {"level": level, "mode": mode, "gating": gating, "threshold": threshold}
    return {"algo": {"advantage": {f"is_correction_{name}": value for name, value in values.items()}}}


@pytest.mark.parametrize(
    "values",
    [
        ("off", "mask", "ratio", [0.5, 5]),
        ("token", "clip", "ratio", [0, 2]),
        ("token", "mask", "ratio", [0.5, 5]),
        ("seq", "mask", "ratio", [0.99, 1.01]),
        ("token", "mask", "tv", [0, 0.1]),
        ("seq", "mask", "binary_kl", [0, 1e-3]),
    ],
)
def test_corrections_that_mean_something(values: tuple[Any, ...]) -> None:
    config = make_config(**correction(*values))
    assert list(config.algo.advantage.is_correction_threshold) == values[-1]
    assert config.notes() == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("token", "clip", "tv", [0, 0.1]), "set is_correction_level: token and is_correction_gating: ratio, or"),
        (("seq", "clip", "ratio", [0.5, 5]), "set is_correction_level: token and is_correction_gating: ratio, or"),
        (("token", "mask", "tv", [0.5, 5]), r"set is_correction_threshold to \[0, delta\], not \[0.5, 5.0\]"),
        (("seq", "mask", "binary_kl", [0.1, 5]), r"set is_correction_threshold to \[0, delta\]"),
        (("token", "mask", "ratio", [5, 0.5]), "0 <= low < high"),
        (("off", "mask", "ratio", [-1, 0.5]), "0 <= low < high"),
        (("token", "drop", "ratio", [0.5, 5]), "is_correction_mode"),
    ],
)
def test_corrections_that_do_not(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_config(**correction(*values))


def test_a_correction_that_is_off_has_options_without_effect() -> None:
    notes = make_config(**correction("off", "clip", "ratio", [0, 2])).notes()
    assert [note.partition(" ")[0] for note in notes] == [
        "algo.advantage.is_correction_mode",
        "algo.advantage.is_correction_threshold",
    ]


def test_k1_belongs_in_the_reward() -> None:
    with pytest.raises(ValidationError, match=r"Set it to k3 .* or k2, or objective.kl_in to reward"):
        make_config(algo={"kl": {"estimator": "k1"}})
    in_reward = {"kl_in": "reward"}
    assert make_config(algo={"kl": {"estimator": "k1"}}, objective=in_reward).objective.kl_in == "reward"
    assert make_config(algo={"kl": {"estimator": "k2"}}).notes() == []


def test_without_a_reference_the_kls_options_have_no_effect() -> None:
    config = make_config(algo={"kl": {"init_coef": 0, "estimator": "k1"}}, objective={"kl_in": "reward"})
    assert [note.partition(" ")[0] for note in config.notes()] == ["objective.kl_in", "algo.kl.estimator"]
