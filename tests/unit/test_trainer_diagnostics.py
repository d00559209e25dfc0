"""Correlation, spread within groups, and the warning about weights that run to a component without any."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from openrlhf_maestro.trainer.diagnostics import CollapseWatch
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


def metrics(weight: float, spread: float) -> dict[str, float]:
    return {
        "conductor/weight/format": weight,
        "conductor/weight/judge": 1 - weight,
        "reward/format/norm_group_std": spread,
        "reward/judge/norm_group_std": 0.4,
    }


def test_a_component_that_takes_the_weight_without_varying_is_named_once_with_the_mend() -> None:
    watch = CollapseWatch(["format", "judge"], "advantage")
    assert watch.warnings(metrics(0.4, 0.05)) == []
    (warning,) = watch.warnings(metrics(0.6, 0.05))
    assert "60% of the weight to format" in warning and "conductor.credit: anchor" in warning
    assert watch.warnings(metrics(0.9, 0.01)) == [], "once is enough"


def test_weight_on_what_varies_is_no_collapse() -> None:
    assert CollapseWatch(["format", "judge"], "advantage").warnings(metrics(0.05, 0.05)) == []
