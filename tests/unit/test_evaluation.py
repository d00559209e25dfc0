"""Verdicts by rule and accuracy with Wilson's interval."""

import math

import pytest

from openrlhf_maestro.evaluation import Accuracy, accuracy_by_datasource, rule_verdicts


def wilson_by_hand(right: int, total: int) -> tuple[float, float]:
    """Wilson (1927): the roots p of (k/n - p)^2 = z^2 p (1 - p) / n, with the normal's 97.5 % quantile."""
    z = 1.959963984540054
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return centre - half, centre + half


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (1, 3), (470, 508), (150, 300)])
def test_interval_is_wilsons(right: int, total: int) -> None:
    assert Accuracy(right, total).interval() == pytest.approx(wilson_by_hand(right, total), abs=1e-12)


def test_interval_of_a_perfect_score_stays_inside_and_is_not_a_point() -> None:
    low, high = Accuracy(20, 20).interval()
    assert high == pytest.approx(1.0) and low < 0.9


@pytest.mark.parametrize(("right", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(right: int, total: int) -> None:
    with pytest.raises(ValueError, match="not an accuracy"):
        Accuracy(right, total)


def test_text_gives_share_counts_and_interval() -> None:
    assert str(Accuracy(470, 508)) == "92.5% (470/508, 95 % 89.9% to 94.5%)"


def test_accuracy_is_grouped_by_datasource() -> None:
    found = accuracy_by_datasource(["b", "a", "b", "b"], [True, False, False, True])
    assert list(found) == ["a", "b"]
    assert found == {"a": Accuracy(0, 1), "b": Accuracy(2, 3)}


def test_unequal_lengths_are_refused() -> None:
    row = {"datasource": "comparing", "prompt": "Which is the largest: 1 2 3?", "reference": "3"}
    with pytest.raises(ValueError, match="2 rows but 1 responses"):
        rule_verdicts([row, row], ["<think>x</think><answer>3</answer>"])
    with pytest.raises(ValueError, match="1 datasources but 2 verdicts"):
        accuracy_by_datasource(["a"], [True, False])


def test_verdicts_are_in_the_order_of_the_responses() -> None:
    row = {"datasource": "comparing", "prompt": "Which is the largest: 1 2 3?", "reference": "3"}
    responses = ["<think>x</think><answer>3</answer>", "<think>x</think><answer>2</answer>", "3"]
    assert rule_verdicts([row] * 3, responses) == [True, False, False]
