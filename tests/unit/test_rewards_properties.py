"""What holds for any group: ranks and scalar rewards, with ties, missing values and responses at fault."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from openrlhf_maestro.rewards import group_rank, scalarize

NAN, INF = math.nan, math.inf
PROPERTY = settings(max_examples=150, deadline=None)

# Small integers, so that ties are common, and any float; G = 2 ... 16.
SCORE = st.integers(-2, 2).map(float) | st.floats(-1e6, 1e6)
ANY = SCORE | st.sampled_from([NAN, -INF])


def group_of(value: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    return st.lists(value, min_size=2, max_size=16)


def ranks(values: list[float]) -> list[float]:
    return group_rank(torch.tensor([values], dtype=torch.float64))[0].tolist()


# ── ranks ──


@PROPERTY
@given(group_of(SCORE))
def test_ranks_are_scipys_average_ranks_scaled(values: list[float]) -> None:
    expected = (rankdata(values, method="average") - 1) / (len(values) - 1)
    assert ranks(values) == pytest.approx(expected.tolist(), abs=1e-12)


@PROPERTY
@given(group_of(SCORE | st.just(-INF)))
def test_a_fault_takes_a_rank_but_gets_0(values: list[float]) -> None:
    expected = (rankdata(values, method="average") - 1) / (len(values) - 1)
    expected[[value == -INF for value in values]] = 0.0
    assert ranks(values) == pytest.approx(expected.tolist(), abs=1e-12)


@PROPERTY
@given(group_of(ANY))
def test_ranks_are_in_range_and_missing_exactly_where_the_value_is(values: list[float]) -> None:
    for value, rank in zip(values, ranks(values), strict=True):
        assert math.isnan(rank) == math.isnan(value)
        assert math.isnan(rank) or 0 <= rank <= 1
        assert value != -INF or rank == 0


@PROPERTY
@given(group_of(ANY))
def test_ranks_keep_the_order_and_ties(values: list[float]) -> None:
    pairs = [pair for pair in zip(values, ranks(values), strict=True) if not math.isnan(pair[0])]
    for value, rank in pairs:
        for other, others_rank in pairs:
            assert (value < other) == (rank < others_rank)


@PROPERTY
@given(group_of(ANY))
def test_what_is_missing_leaves_the_others_as_a_smaller_group(values: list[float]) -> None:
    present = [value for value in values if not math.isnan(value)]
    found = [rank for rank in ranks(values) if not math.isnan(rank)]
    assert found == (ranks(present) if present else [])


@PROPERTY
@given(group_of(SCORE))
def test_ranks_of_the_negated_values_are_mirrored(values: list[float]) -> None:
    mirrored = ranks([-value for value in values])
    assert [a + b for a, b in zip(ranks(values), mirrored, strict=True)] == pytest.approx([1.0] * len(values))


@PROPERTY
@given(group_of(st.integers(0, 5) | st.sampled_from([NAN, -INF])), st.lists(SCORE, min_size=6, max_size=6, unique=True))
def test_only_the_order_of_the_values_counts(values: list[float], levels: list[float]) -> None:
    levels = sorted(levels)
    others = [levels[int(value)] if math.isfinite(value) else value for value in values]
    assert ranks(others) == pytest.approx(ranks(values), nan_ok=True, abs=0)


@PROPERTY
@given(st.integers(2, 16), SCORE)
def test_a_group_of_equal_values_gets_one_half(size: int, value: float) -> None:
    assert ranks([value] * size) == [0.5] * size


@PROPERTY
@given(st.integers(2, 8).flatmap(lambda size: st.lists(st.lists(ANY, min_size=size, max_size=size), min_size=2)))
def test_groups_do_not_see_each_other(groups: list[list[float]]) -> None:
    together = group_rank(torch.tensor(groups, dtype=torch.float64))
    alone = torch.tensor([ranks(group) for group in groups], dtype=torch.float64)
    torch.testing.assert_close(together, alone, rtol=0, atol=0, equal_nan=True)


# ── the scalar reward ──

COMPONENT = st.floats(0, 1) | st.just(NAN)
# (normalised component, weight before normalisation), K = 1 ... 8; some weights are 0.
PARTS = st.lists(st.tuples(COMPONENT, st.just(0.0) | st.floats(1e-3, 1)), min_size=1, max_size=8)


def scalar(parts: list[tuple[float, float]], total: float = 1.0) -> float:
    """Of components whose weights are brought to this sum."""
    values, weights = (torch.tensor(column, dtype=torch.float64) for column in zip(*parts, strict=True))
    return scalarize(values, weights * total / weights.sum().clamp(min=1e-9)).item()


def counted(parts: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(value, weight) for value, weight in parts if not math.isnan(value) and weight > 0]


@PROPERTY
@given(PARTS)
def test_the_scalar_is_nan_exactly_where_nothing_counts_and_lies_among_what_does(parts) -> None:
    found, present = scalar(parts), [value for value, _ in counted(parts)]
    assert math.isnan(found) == (not present)
    assert not present or min(present) - 1e-12 <= found <= max(present) + 1e-12


@PROPERTY
@given(PARTS)
def test_what_is_missing_is_as_if_it_were_not_configured(parts) -> None:
    assert not counted(parts) or scalar(parts) == pytest.approx(scalar(counted(parts)), abs=1e-12)


@PROPERTY
@given(PARTS, st.floats(1e-3, 1))
def test_a_component_equal_to_the_scalar_changes_nothing(parts, weight: float) -> None:
    found = scalar(parts)
    assert math.isnan(found) or scalar([*parts, (found, weight)]) == pytest.approx(found, abs=1e-9)


@PROPERTY
@given(PARTS, st.randoms(use_true_random=False))
def test_the_order_of_the_components_does_not_matter(parts, random) -> None:
    shuffled = random.sample(parts, len(parts))
    assert scalar(shuffled) == pytest.approx(scalar(parts), nan_ok=True, abs=1e-12)


@PROPERTY
@given(PARTS, st.floats(-5, 5), st.floats(-5, 5))
def test_the_scalar_is_linear_in_the_components(parts, factor: float, shift: float) -> None:
    mapped = [(factor * value + shift, weight) for value, weight in parts]
    assert scalar(mapped) == pytest.approx(factor * scalar(parts) + shift, nan_ok=True, abs=1e-9)


@PROPERTY
@given(PARTS, st.floats(0.1, 10))
def test_the_scalar_grows_with_the_total_weight(parts, total: float) -> None:
    assert scalar(parts, total) == pytest.approx(total * scalar(parts), nan_ok=True, abs=1e-9)


@PROPERTY
@given(PARTS, st.integers(0, 7), st.floats(0, 1))
def test_a_higher_component_never_lowers_the_scalar(parts, place: int, value: float) -> None:
    place %= len(parts)
    old, weight = parts[place]
    raised = [*parts[:place], (max(old, value), weight), *parts[place + 1 :]]
    assert math.isnan(old) or math.isnan(scalar(parts)) or scalar(raised) >= scalar(parts) - 1e-12


@PROPERTY
@given(st.floats(0, 1, width=32), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_equal_components_make_a_constant_group_whatever_the_weights(value: float, k: int, seed: int) -> None:
    """float32 weights of each response's own, as the Conductor gives them: their sums differ from 1 by rounding."""
    weights = torch.rand(16, k, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    components = torch.full((16, k), value)
    components[torch.rand(16, k, generator=torch.Generator().manual_seed(seed)) < 0.3] = NAN
    components[:, 0] = value
    assert scalarize(components, weights).unique().tolist() == [value]
