"""Rank normalisation in a group, and the weighted sum."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_maestro.rewards import group_rank, scalarize
from openrlhf_maestro.rewards.standardising import group_zscore

NAN, INF = math.nan, math.inf


def slow_rank(group: list[float]) -> list[float]:
    """The definition, one value at a time: mean index among the sorted values that are there, over the last index."""
    present = sorted(value for value in group if not math.isnan(value))
    ranks = []
    for value in group:
        if math.isnan(value):
            ranks.append(NAN)
        elif value == -INF:
            ranks.append(0.0)
        elif len(present) == 1:
            ranks.append(0.5)
        else:
            places = [place for place, other in enumerate(present) if other == value]
            ranks.append(sum(places) / len(places) / (len(present) - 1))
    return ranks


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 1.0, 2.0], [1.0, 0.0, 0.5]),
        ([10.0, -1.0, 0.0, 0.1, 9.0], [1.0, 0.0, 0.25, 0.5, 0.75]),
        ([7.0, 7.0, 7.0], [0.5, 0.5, 0.5]),
        ([1.0, 2.0, 2.0], [0.0, 0.75, 0.75]),
        ([1.0, 1.0, 2.0, 3.0], [1 / 6, 1 / 6, 2 / 3, 1.0]),
        ([-INF, 1.0, 2.0], [0.0, 0.5, 1.0]),
        ([-INF, -INF, 1.0, 2.0], [0.0, 0.0, 2 / 3, 1.0]),
        ([-INF, 3.0, 3.0], [0.0, 0.75, 0.75]),
        ([-INF, -INF, 5.0], [0.0, 0.0, 1.0]),
        ([-INF, -INF], [0.0, 0.0]),
        ([NAN, 1.0, 2.0, 4.0], [NAN, 0.0, 0.5, 1.0]),
        ([NAN, -INF, 2.0], [NAN, 0.0, 1.0]),
        ([NAN, NAN, 2.0], [NAN, NAN, 0.5]),
        ([NAN, NAN, -INF], [NAN, NAN, 0.0]),
        ([NAN, NAN], [NAN, NAN]),
        ([4.0], [0.5]),
    ],
)
def test_by_hand(values: list[float], expected: list[float]) -> None:
    ranks = group_rank(torch.tensor([values]))
    torch.testing.assert_close(ranks, torch.tensor([expected]), equal_nan=True, rtol=0, atol=1e-7)
    assert ranks.dtype == torch.float32


# Few distinct values, so that ties are common.
VALUE = st.one_of(st.integers(-2, 2).map(float), st.floats(-1e3, 1e3, width=32), st.just(-INF), st.just(NAN))
GROUPS = st.integers(2, 16).flatmap(
    lambda size: st.lists(st.lists(VALUE, min_size=size, max_size=size), min_size=1, max_size=4)
)


@settings(max_examples=200, deadline=None)
@given(GROUPS)
def test_agrees_with_the_definition(groups: list[list[float]]) -> None:
    ranks = group_rank(torch.tensor(groups))
    expected = torch.tensor([slow_rank(group) for group in groups])
    torch.testing.assert_close(ranks, expected, equal_nan=True, rtol=0, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(GROUPS, st.randoms(use_true_random=False))
def test_does_not_depend_on_the_order_in_the_group(groups: list[list[float]], random) -> None:
    order = list(range(len(groups[0])))
    random.shuffle(order)
    values = torch.tensor(groups)
    torch.testing.assert_close(
        group_rank(values)[:, order], group_rank(values[:, order]), equal_nan=True, rtol=0, atol=0
    )


def test_breaking_the_format_never_pays() -> None:
    """Whatever a valid response's rank is, it would not be higher had the response been at fault."""
    values = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    at_fault = values.clone()
    at_fault[:, 0] = -INF
    assert (group_rank(at_fault)[:, 0] <= group_rank(values)[:, 0]).all()
    assert (group_rank(at_fault)[:, 1:] >= group_rank(values)[:, 1:]).all()


@pytest.mark.parametrize("values", [torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)])
def test_refuses_other_shapes_and_integers(values: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="group_rank"):
        group_rank(values)


@pytest.mark.parametrize(
    ("components", "weights", "expected"),
    [
        ([1.0, 0.5, 0.0], [0.2, 0.6, 0.2], 0.5),
        ([1.0, NAN, 0.0], [0.2, 0.6, 0.2], 0.5),  # (0.2 * 1) / (0.2 + 0.2)
        ([NAN, NAN, 0.7], [0.2, 0.6, 0.2], 0.7),
        ([NAN, NAN, NAN], [0.2, 0.6, 0.2], NAN),
        ([NAN, 0.4, 0.3], [1.0, 0.0, 0.0], NAN),  # all the weight on what is missing
        ([0.9, NAN, NAN], [1.0, 0.0, 0.0], 0.9),
        ([1.0, NAN], [2.0, 2.0], 4.0),  # off the simplex the total weight is kept
        ([1.0, 1.0], [0.5, 0.4999], 0.9999),  # also near it
    ],
)
def test_scalarize_by_hand(components: list[float], weights: list[float], expected: float) -> None:
    scalar = scalarize(torch.tensor(components), torch.tensor(weights))
    torch.testing.assert_close(scalar, torch.tensor(expected), equal_nan=True, rtol=1e-6, atol=1e-7)


def test_scalarize_agrees_with_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    components = torch.rand(4, 3, 5, generator=generator, dtype=torch.float64)
    components[torch.rand(4, 3, 5, generator=generator) < 0.4] = NAN
    weights = torch.rand(4, 3, 5, generator=generator, dtype=torch.float64).softmax(-1)
    scalars = scalarize(components, weights)
    assert scalars.shape == (4, 3)
    for i in range(4):
        for j in range(3):
            pairs = [
                (c, w)
                for c, w in zip(components[i, j].tolist(), weights[i, j].tolist(), strict=True)
                if not math.isnan(c)
            ]
            expected = sum(c * w for c, w in pairs) / sum(w for _, w in pairs) if pairs else NAN
            assert scalars[i, j].item() == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_scalarize_gives_equal_rows_equal_rewards_wherever_they_stand() -> None:
    """A constant group must be exactly constant, or its advantages are not exactly 0."""
    row, weights = torch.tensor([0.1, 0.7, 0.3, 1 / 3, 0.9]), torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])
    for size in (2, 5, 16, 33, 257):
        assert scalarize(row.repeat(size, 1), weights.repeat(size, 1)).unique().numel() == 1


def test_scalarize_passes_gradients_to_the_weights() -> None:
    """For R = (w1 c1 + w2 c2) (w1 + w2 + w3) / (w1 + w2) with w3's component missing."""
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64, requires_grad=True)
    components = torch.tensor([1.0, 0.25, NAN], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(scalarize(components, weights), weights)
    weighted, kept = 0.5 * 1.0 + 0.3 * 0.25, 0.8
    expected = [(c / kept - weighted / kept**2) + weighted / kept for c in (1.0, 0.25)] + [weighted / kept]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))


def test_scalarize_refuses_different_k() -> None:
    with pytest.raises(ValueError, match="agree in K"):
        scalarize(torch.zeros(2, 3), torch.zeros(2, 1))


# ── standardised ──


def test_zscore_by_hand() -> None:
    values = torch.tensor(
        [
            [1.0, 2.0, 3.0, 6.0],  # mean 3, sample variance (4 + 1 + 0 + 9) / 3
            [5.0, 5.0, 5.0, 5.0],
            [1.0, NAN, 3.0, -INF],  # over 1 and 3: mean 2, std sqrt(2); the fault one below the lower
            [-INF, -INF, NAN, -INF],
            [-INF, 4.0, NAN, NAN],
        ],
        dtype=torch.float64,
    )
    std, two = math.sqrt(14 / 3) + 1e-4, math.sqrt(2) + 1e-4
    expected = [
        [-2 / std, -1 / std, 0.0, 3 / std],
        [0.0] * 4,
        [-1 / two, NAN, 1 / two, -1 / two - 1],
        [0.0, 0.0, NAN, 0.0],
        [-1.0, 0.0, NAN, NAN],
    ]
    torch.testing.assert_close(group_zscore(values), torch.tensor(expected, dtype=torch.float64), equal_nan=True)


def test_zscore_of_equal_values_is_exactly_0() -> None:
    for size in (2, 3, 7, 16):
        assert group_zscore(torch.full((1, size), 0.1)).tolist() == [[0.0] * size]


@pytest.mark.parametrize("values", [torch.zeros(3), torch.zeros(2, 3, dtype=torch.long)])
def test_zscore_refuses_other_shapes_and_integers(values: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="group_zscore"):
        group_zscore(values)
