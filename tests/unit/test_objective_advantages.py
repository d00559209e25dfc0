"""Group-relative advantages."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_maestro.objective import constant_groups, group_advantages

NAN = math.nan


def slow_advantages(rewards: list[float], scale: str) -> list[float]:
    present = [reward for reward in rewards if not math.isnan(reward)]
    if len(set(present)) < 2:
        return [0.0] * len(rewards)
    mean = math.fsum(present) / len(present)
    std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in present) / (len(present) - 1))
    divisor = std + 1e-4 if scale == "group" else 1.0
    return [0.0 if math.isnan(reward) else (reward - mean) / divisor for reward in rewards]


def test_by_hand() -> None:
    # mean 2, deviations -1 0 1, sample variance 1; mean 0.25, deviations, sample variance (3/16 + 9/16) / 3 = 1/4
    rewards = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    three, four = (group_advantages(reward) for reward in rewards)
    torch.testing.assert_close(three, torch.tensor([[-1.0, 0.0, 1.0]]) / 1.0001)
    torch.testing.assert_close(four, torch.tensor([[-0.25, -0.25, 0.75, -0.25]]) / 0.5001)
    torch.testing.assert_close(group_advantages(rewards[1], "none"), torch.tensor([[-0.25, -0.25, 0.75, -0.25]]))


REWARD = st.one_of(st.sampled_from([0.0, 0.1, 1.0, NAN]), st.floats(-10, 10))
GROUPS = st.integers(2, 16).flatmap(
    lambda size: st.lists(st.lists(REWARD, min_size=size, max_size=size), min_size=1, max_size=4)
)


@settings(max_examples=200, deadline=None)
@given(GROUPS, st.sampled_from(["group", "none"]))
def test_agrees_with_the_definition(groups: list[list[float]], scale) -> None:
    advantages = group_advantages(torch.tensor(groups, dtype=torch.float64), scale)
    expected = torch.tensor([slow_advantages(group, scale) for group in groups], dtype=torch.float64)
    torch.testing.assert_close(advantages, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(GROUPS)
def test_single_precision_is_finite_centred_and_bounded(groups: list[list[float]]) -> None:
    advantages = group_advantages(torch.tensor(groups))
    size = len(groups[0])
    assert advantages.dtype == torch.float32 and advantages.isfinite().all()
    torch.testing.assert_close(advantages.sum(1), torch.zeros(len(groups)), rtol=0, atol=1e-2)
    # The largest standardised value of n numbers is (n - 1) / sqrt(n).
    assert advantages.abs().max() <= (size - 1) / math.sqrt(size) + 1e-3


@pytest.mark.parametrize("size", range(2, 17))
@pytest.mark.parametrize("scale", ["group", "none"])
def test_equal_rewards_give_exactly_zero(size: int, scale) -> None:
    values = torch.rand(500, 1, generator=torch.Generator().manual_seed(size))
    rewards = values.expand(500, size)
    if size in (5, 7, 11):  # the case is real: the mean of these is off by a rounding error
        assert (rewards.mean(dim=1, keepdim=True) != values).any()
    assert torch.equal(group_advantages(rewards, scale), torch.zeros(500, size))
    assert constant_groups(rewards).all()


def test_missing_rewards_take_no_part() -> None:
    rewards = torch.tensor([[1.0, NAN, 3.0, 2.0], [NAN, 5.0, NAN, NAN], [NAN] * 4, [0.1, 0.1, NAN, 0.1]])
    expected = torch.zeros(4, 4)
    expected[0] = torch.tensor([-1.0, 0.0, 1.0, 0.0]) / 1.0001
    torch.testing.assert_close(group_advantages(rewards), expected, rtol=1e-6, atol=0)
    assert constant_groups(rewards).tolist() == [False, True, True, True]


def test_group_of_one_has_nothing_to_compare() -> None:
    assert torch.equal(group_advantages(torch.tensor([[3.0]])), torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("rewards", "scale", "message"),
    [
        (torch.zeros(4), "group", r"\(N, G\)"),
        (torch.zeros(1, 4), "batch", "scale"),
        (torch.tensor([[1.0, math.inf]]), "group", "infinite"),
        (torch.tensor([[1.0, -math.inf]]), "none", "infinite"),
    ],
)
def test_refuses_nonsense(rewards: torch.Tensor, scale, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, scale)
