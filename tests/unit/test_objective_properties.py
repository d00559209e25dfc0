"""What holds for the advantages of any group: ties, constant groups, missing rewards, faults; G = 2 ... 16."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from openrlhf_maestro.objective import constant_groups, group_advantages
from openrlhf_maestro.rewards import group_rank

NAN, INF = math.nan, math.inf
PROPERTY = settings(max_examples=150, deadline=None)

# Few levels, so that ties are common; and any float.
REWARD = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(-10, 10)
SCALES = st.sampled_from(["group", "none"])


def group_of(value: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    return st.lists(value, min_size=2, max_size=16)


def advantages(rewards: list[float], scale="group") -> list[float]:
    return group_advantages(torch.tensor([rewards], dtype=torch.float64), scale)[0].tolist()


def spread(rewards: list[float]) -> float:
    """Sample standard deviation."""
    return torch.tensor(rewards, dtype=torch.float64).std().item()


@PROPERTY
@given(group_of(REWARD | st.just(NAN)), SCALES, st.randoms(use_true_random=False))
def test_the_order_in_the_group_does_not_matter(rewards: list[float], scale, random) -> None:
    order = random.sample(range(len(rewards)), len(rewards))
    shuffled = advantages([rewards[place] for place in order], scale)
    expected = advantages(rewards, scale)
    # Sums in another order; where the spread itself is rounding, the division by 1e-4 makes 1e-15 up to 1e-11.
    assert shuffled == pytest.approx([expected[place] for place in order], rel=1e-9, abs=1e-10)


@PROPERTY
@given(group_of(REWARD | st.just(NAN)), SCALES)
def test_a_missing_reward_leaves_the_others_as_a_smaller_group(rewards: list[float], scale) -> None:
    present = [reward for reward in rewards if not math.isnan(reward)]
    found = advantages(rewards, scale)
    others = [advantage for advantage, reward in zip(found, rewards, strict=True) if not math.isnan(reward)]
    assert [a for a, reward in zip(found, rewards, strict=True) if math.isnan(reward)] == [0.0] * (
        len(rewards) - len(present)
    )
    assert others == pytest.approx(advantages(present, scale) if present else [], rel=1e-9, abs=1e-10)


@PROPERTY
@given(group_of(REWARD), SCALES)
def test_advantages_keep_order_and_ties(rewards: list[float], scale) -> None:
    found = advantages(rewards, scale)
    for reward, advantage in zip(rewards, found, strict=True):
        for other, others_advantage in zip(rewards, found, strict=True):
            assert reward != other or advantage == others_advantage
            assert reward >= other or advantage <= others_advantage


@PROPERTY
@given(group_of(REWARD), SCALES, st.floats(-10, 10))
def test_a_shift_of_all_rewards_changes_nothing(rewards: list[float], scale, shift: float) -> None:
    assume(spread(rewards) > 1e-6)  # else the shift rounds it away
    shifted = advantages([reward + shift for reward in rewards], scale)
    assert shifted == pytest.approx(advantages(rewards, scale), rel=1e-6, abs=1e-8)


@PROPERTY
@given(group_of(REWARD), st.floats(0.1, 10))
def test_a_positive_factor_scales_them_or_cancels_but_for_the_epsilon(rewards: list[float], factor: float) -> None:
    assume(spread(rewards) > 1e-6)
    scaled = [factor * reward for reward in rewards]
    plain = advantages(rewards, "none")
    assert advantages(scaled, "none") == pytest.approx([factor * advantage for advantage in plain], rel=1e-6, abs=1e-9)
    undone = [[a * (spread(group) + 1e-4) / spread(group) for a in advantages(group)] for group in (rewards, scaled)]
    assert undone[0] == pytest.approx(undone[1], rel=1e-6, abs=1e-6)


@PROPERTY
@given(group_of(REWARD), SCALES)
def test_turning_the_rewards_round_turns_the_advantages_round(rewards: list[float], scale) -> None:
    turned = advantages([-reward for reward in rewards], scale)
    assert [-advantage for advantage in turned] == pytest.approx(advantages(rewards, scale), abs=1e-12)


@PROPERTY
@given(group_of(REWARD))
def test_they_have_mean_0_and_the_variance_that_the_epsilon_leaves(rewards: list[float]) -> None:
    assume(spread(rewards) > 1e-6)
    found = torch.tensor(advantages(rewards), dtype=torch.float64)
    shrunk = spread(rewards) / (spread(rewards) + 1e-4)
    assert found.mean().item() == pytest.approx(0, abs=1e-8)
    assert found.std().item() == pytest.approx(shrunk, rel=1e-6)


@PROPERTY
@given(st.integers(2, 16), st.floats(-1e6, 1e6, width=32), st.integers(0, 15), SCALES)
def test_a_constant_group_is_exactly_0_also_with_missing_rewards(size: int, value: float, missing: int, scale) -> None:
    rewards = torch.full((1, size), value)
    rewards[0, : min(missing, size)] = NAN
    assert constant_groups(rewards).all()
    assert torch.equal(group_advantages(rewards, scale), torch.zeros(1, size))


@PROPERTY
@given(group_of(st.integers(-3, 3).map(float) | st.sampled_from([NAN, -INF])))
def test_breaking_the_format_has_the_lowest_advantage_of_a_ranked_group(values: list[float]) -> None:
    """From raw scores through ranks to advantages: a fault is never above a valid response, the best never below 0."""
    found = group_advantages(group_rank(torch.tensor([values], dtype=torch.float64)))[0].tolist()
    faults = [advantage for advantage, value in zip(found, values, strict=True) if value == -INF]
    valid = [advantage for advantage, value in zip(found, values, strict=True) if math.isfinite(value)]
    assert all(fault <= other for fault in faults for other in valid)
    assert not (faults and valid) or (max(faults) < 0 < max(valid))
    assert not valid or max(valid) >= 0
