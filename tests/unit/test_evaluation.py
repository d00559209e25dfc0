"""Verdicts by rule and accuracy with Wilson's interval."""

import math
from pathlib import Path

import pytest

from openrlhf_maestro.config.verdicts import JudgeVerdictSection, ReferenceVerdictSection
from openrlhf_maestro.evaluation import Accuracy, Item, Verdict, accuracy_by_datasource, make_verdicts


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
    with pytest.raises(ValueError, match="1 datasources but 2 verdicts"):
        accuracy_by_datasource(["a"], [True, False])


def test_verdicts_by_rule_are_in_the_order_of_the_responses() -> None:
    responses = ["<think>x</think><answer>3</answer>", "<think>x</think><answer>2</answer>", "3"]
    items = [
        Item(f"{number}#0", "comparing", "Which is the largest: 1 2 3?", "3", response)
        for number, response in enumerate(responses)
    ]
    judging = make_verdicts("rule", JudgeVerdictSection(), ReferenceVerdictSection(), Path("unused"))
    assert judging(items) == [Verdict(True, None), Verdict(False, None), Verdict(False, None)]
