"""Correlation, spread within groups, and the warning about weights that run to a component without any."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.trainer.diagnostics import CollapseWatch, collapse_watch
from openrlhf_maestro.trainer.metrics import correlation, group_std

NAN = math.nan


def test_spread_within_groups_is_the_mean_of_their_standard_deviations() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0], [0.0, NAN, 2.0], [NAN, 5.0, NAN]])
    # Sample standard deviations 1, 0 and sqrt(2); the last group has nothing to compare.
    assert group_std(values) == pytest.approx((1 + 0 + math.sqrt(2)) / 3)
    assert math.isnan(group_std(torch.tensor([[1.0, NAN]])))


def test_correlation_is_pearsons() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(50, generator=generator, dtype=torch.float64)
    second = first + torch.rand(50, generator=generator, dtype=torch.float64)
    assert correlation(first, second) == pytest.approx(np.corrcoef(first, second)[0, 1])
    with_gap = torch.cat([second, torch.tensor([NAN], dtype=torch.float64)])
    longer = torch.cat([first, torch.tensor([100.0], dtype=torch.float64)])
    assert correlation(longer, with_gap) == pytest.approx(correlation(first, second))
    assert correlation(torch.ones(5), torch.arange(5.0)) == 0


def metrics(weight: float, constant: float) -> dict[str, float]:
    return {
        "conductor/weight/format": weight,
        "conductor/weight/judge": 1 - weight,
        "reward/format/constant_rate": constant,
        "reward/judge/constant_rate": 0.0,
    }


def make_watch(**sections: Any) -> CollapseWatch | None:
    base: dict[str, Any] = {
        "actor": {"model_name_or_path": "policy"},
        "data": {"prompt_dataset": "rows.jsonl"},
        "rewards": {"components": [{"kind": "format"}, {"kind": "judge", "model": "m"}]},
    }
    return collapse_watch(MaestroConfig.model_validate(base | sections))


def test_a_component_that_takes_the_weight_without_varying_is_named_once_with_the_mend() -> None:
    watch = make_watch()
    assert watch is not None
    assert watch.warnings(metrics(0.4, 0.9)) == []
    (warning,) = watch.warnings(metrics(0.6, 0.77))
    assert "60% of the weight to format" in warning and "77% of the groups" in warning
    assert "conductor.credit: anchor is a rule" in warning and "rewards.normalisation: rank" in warning
    assert watch.warnings(metrics(0.9, 0.99)) == [], "once is enough"


def test_weight_on_what_varies_is_no_collapse() -> None:
    watch = make_watch()
    assert watch is not None and watch.warnings(metrics(0.05, 0.9)) == watch.warnings(metrics(0.9, 0.2)) == []


def test_the_mend_is_one_that_can_be_made() -> None:
    joint = make_watch(conductor={"schedule": "joint"})
    assert joint is not None and "with conductor.schedule: async" in joint.mend
    judge = {"kind": "judge", "model": "m", "anchor": True}
    components = [{"kind": "format"}, {"kind": "length"}, judge]
    anchored = make_watch(rewards={"components": components}, conductor={"credit": "anchor"})
    assert anchored is not None and anchored.mend.startswith("Look at the anchor")
    assert make_watch(conductor={"kind": "equal"}) is None
    assert make_watch(conductor={"init_from": "c", "freeze": True}) is None
