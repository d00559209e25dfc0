"""Statistics of evaluations against definitions, published examples, other implementations and simulated truth."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from openrlhf_maestro.evaluation.statistics import (
    Estimate,
    agreement,
    cluster_totals,
    difference_interval,
    effective_size,
    holm,
    mcnemar,
    mean_interval,
    paired_test,
    share_interval,
    sign_flips,
)

Z = 1.959963984540054  # 97.5 % quantile of the normal


def hits(right: int, total: int) -> list[int]:
    return [1] * right + [0] * (total - right)


def wilson_by_hand(right: float, total: float) -> tuple[float, float]:
    """Wilson (1927): the roots p of (k/n - p)^2 = z^2 p (1 - p) / n."""
    share = right / total
    centre = (share + Z * Z / (2 * total)) / (1 + Z * Z / total)
    half = Z / (1 + Z * Z / total) * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    return centre - half, centre + half


def same(length: int, each: int) -> list[int]:
    """Clusters of `each` rows."""
    return [row // each for row in range(length)]


# ── Wilson, clusters ──


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (1, 3), (470, 508), (150, 300)])
def test_share_of_independent_rows_has_wilsons_interval(right: int, total: int) -> None:
    found = share_interval(hits(right, total), range(total))
    assert (found.low, found.high) == pytest.approx(wilson_by_hand(right, total), abs=1e-12)
    assert found.value == right / total


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I: method 3, score without continuity correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_of_newcombes_table(right: int, total: int, low: float, high: float) -> None:
    found = share_interval(hits(right, total), range(total))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_does_not_leave_0_to_1() -> None:
    none, all_of_them = share_interval(hits(0, 7), range(7)), share_interval(hits(7, 7), range(7))
    assert none.low is not None and all_of_them.high is not None
    assert 0 <= none.low < 1e-12 and 1 - 1e-12 < all_of_them.high <= 1


def test_independent_rows_are_worth_what_they_are() -> None:
    assert effective_size(hits(3, 9), range(9)) == 9.0


def test_effective_size_by_hand() -> None:
    """Four clusters of two: both right, both right, one right, none. p = 5/8, residuals k - 2p: .75, .75, -.25, -1.25.

    Between: 4/3 x 2.75 / 64. Independent: (15/64) / 7. Their ratio is 77/45. Times the quantiles of t with 7 and 3
    degrees of freedom from a table, 2.365 and 3.182.
    """
    found = effective_size([1, 1, 1, 1, 1, 0, 0, 0], same(8, 2))
    assert found == pytest.approx(8 / (77 / 45) * (2.3646 / 3.1824) ** 2, rel=1e-4)


def test_rows_that_repeat_each_other_are_worth_about_their_clusters() -> None:
    rows = np.repeat(np.random.default_rng(0).integers(0, 2, 200), 5)
    assert effective_size(rows, same(1000, 5)) == pytest.approx(200, rel=0.03)


def test_clusters_that_look_too_alike_add_no_information() -> None:
    """Every cluster has one right and one wrong: no variance between clusters at all."""
    found = effective_size([1, 0] * 50, same(100, 2))
    assert found == pytest.approx(100 * (stats.t.ppf(0.975, 99) / stats.t.ppf(0.975, 49)) ** 2)
    assert found < 100


@pytest.mark.parametrize("right", [0, 12])
def test_without_variance_a_cluster_counts_once(right: int) -> None:
    assert effective_size(hits(right, 12), same(12, 3)) == 4.0
    found = share_interval(hits(right, 12), same(12, 3))
    assert (found.low, found.high) == pytest.approx(wilson_by_hand(right / 3, 4), abs=1e-12)


def test_one_cluster_of_many_rows_is_one_observation() -> None:
    assert effective_size(hits(5, 10), ["story"] * 10) == 1.0


def test_clusters_widen_the_interval_of_correlated_rows() -> None:
    rows = np.repeat([1, 1, 0, 1, 0, 0, 1, 1, 0, 1], 4)
    alone, together = share_interval(rows, range(40)), share_interval(rows, same(40, 4))
    assert together.low < alone.low < alone.high < together.high


@pytest.mark.parametrize("values", [[1.0, math.nan], [1.0, math.inf], [1.0], []])
def test_values_that_are_no_numbers_or_have_no_cluster_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"not finite|but \d clusters"):
        cluster_totals(values, range(2) if values else [])


def test_totals_by_hand() -> None:
    sums, sizes = cluster_totals([1, 2, 3, 4], ["b", "a", "b", "b"])
    assert sums.tolist() == [2, 8] and sizes.tolist() == [1, 3]


def test_totals_are_the_same_to_the_last_bit_in_any_order() -> None:
    """Left to right, 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in the last bit."""
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    first, second = cluster_totals([0.1, 0.2, 0.3], "aaa")[0], cluster_totals([0.3, 0.2, 0.1], "aaa")[0]
    assert first.tolist() == second.tolist()


# ── bootstrap ──


def test_bootstrap_interval_of_many_rows_is_the_t_interval() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 400)
    found = mean_interval(values, range(400), resamples=40_000)
    half = stats.t.ppf(0.975, 399) * values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half)


def test_bootstrap_p_is_that_of_the_t_test() -> None:
    values = np.random.default_rng(2).normal(0.12, 1.0, 300)
    found = difference_interval(values, range(300), resamples=40_000)
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=0.1)


def test_bootstrap_agrees_with_scipys_where_the_rows_are_independent() -> None:
    """scipy's plain percentiles, which with 1,000 rows are the expanded ones but for a thousandth of their width."""
    values = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], size=1000, p=[0.1, 0.7, 0.2])
    plain = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=7).confidence_interval
    found = mean_interval(values, range(1000), resamples=20_000)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=2.5e-3)


def test_few_clusters_widen_the_interval_as_t_does() -> None:
    """Means of 6 normal clusters: half the width is t_5 s / sqrt(6), 31 % more than the normal's."""
    values = stats.norm.ppf((np.arange(6) + 0.5) / 6)
    found = mean_interval(values, range(6), resamples=100_000)
    assert found.high == pytest.approx(stats.t.ppf(0.975, 5) * values.std(ddof=1) / math.sqrt(6), rel=0.1)


def test_rows_of_one_cluster_say_nothing_about_the_spread() -> None:
    found = difference_interval([1, 0, 1], ["story"] * 3)
    assert found.estimate == Estimate(pytest.approx(2 / 3), None, None) and found.p is None


def test_repeated_rows_leave_the_interval_as_it_was() -> None:
    """Each row three times, as clusters: the same draws of the same means."""
    values = np.random.default_rng(4).normal(size=50)
    once = difference_interval(values, range(50))
    thrice = difference_interval(np.repeat(values, 3), same(150, 3))
    assert thrice.estimate.low == pytest.approx(once.estimate.low) and thrice.p == pytest.approx(once.p)


def test_a_seed_gives_the_same_interval_and_another_one_another() -> None:
    values = np.random.default_rng(5).normal(size=40)
    assert difference_interval(values, range(40), seed=1) == difference_interval(values, range(40), seed=1)
    assert difference_interval(values, range(40), seed=1) != difference_interval(values, range(40), seed=2)


@pytest.mark.parametrize("rows_a_cluster", [1, 4])
def test_nominal_95_percent_covers_95_percent(rows_a_cluster: int) -> None:
    """300 simulated comparisons of 48 clusters: B is better by 0.1 in truth, rows of a cluster share their luck.

    By chance 300 trials at 95 % stay within 91.7 % and 97.7 % in 99 cases of 100.
    """
    random = np.random.default_rng(6)
    clusters = same(48 * rows_a_cluster, rows_a_cluster)
    covered = wilson_covered = 0
    for trial in range(300):
        luck = np.repeat(random.random(48), rows_a_cluster)
        noise = np.repeat(random.random(48), rows_a_cluster)
        first, second = luck < 0.5, np.where(noise < 0.5, luck < 0.6, random.random(len(luck)) < 0.6)
        found = difference_interval(second * 1.0 - first, clusters, resamples=1000, seed=trial).estimate
        share = share_interval(second, clusters)
        assert found.low is not None and found.high is not None and share.low is not None and share.high is not None
        covered += found.low <= 0.1 <= found.high
        wilson_covered += share.low <= 0.6 <= share.high
    assert 0.90 <= covered / 300 <= 0.98
    assert 0.90 <= wilson_covered / 300 <= 0.98


# ── tests ──


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (3, 1, 2 * (1 + 4) / 16),
        (10, 2, 2 * (1 + 12 + 66) / 4096),  # 12 over 0, 1 and 2
        (4, 4, 1.0),
    ],
)
def test_mcnemar_is_the_binomial_test_of_discordant_pairs(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == pytest.approx(p)
    assert mcnemar(second, first) == pytest.approx(p)


def test_sign_flips_by_hand() -> None:
    """Totals of +-3 +-2 +-1: 6, 4, 2, 0, 0, -2, -4, -6. For 3 + 2 - 1 = 4 four of the eight reach it."""
    assert sign_flips([3, 2, -1]).p == 4 / 8
    assert sign_flips([3, 2, 1]).p == 2 / 8
    assert sign_flips([3, 2, 1]).test == "sign flips, exact"


def test_clusters_without_a_difference_do_not_matter() -> None:
    assert sign_flips([3, 0, 0, 2, 0, 1]) == sign_flips([3, 2, 1])
    assert sign_flips([0, 0]).p == 1.0


def test_sign_flips_agree_with_scipys_permutation_test() -> None:
    sums = np.random.default_rng(8).normal(0.4, 1.0, 9)
    theirs = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flips(sums).p == pytest.approx(theirs.pvalue)


def test_sums_of_floats_that_are_equal_but_for_rounding_count_as_reached() -> None:
    """The same in tenths, as whole numbers: of +-1 +-2 +-3 four of eight reach |1 - 2 - 3| = 4."""
    totals = [abs(sum(signs)) for signs in product((1, -1), (2, -2), (3, -3))]
    expected = sum(total >= 4 for total in totals) / 8
    assert sign_flips([0.1, -0.2, -0.3]).p == expected


def test_random_sign_flips_come_close_to_the_exact_binomial_and_never_to_zero() -> None:
    found = sign_flips([1] * 21 + [-1] * 12, resamples=50_000)
    assert found.test == "sign flips, Monte Carlo"
    assert found.p == pytest.approx(stats.binomtest(12, 33).pvalue, rel=0.05)
    assert sign_flips([1] * 200, resamples=1000).p == 1 / 1001


def test_the_change_from_exact_to_random_is_after_20_clusters() -> None:
    assert sign_flips([1] * 20).test == "sign flips, exact"
    assert sign_flips([1] * 20).p == 2 / 2**20
    assert sign_flips([1] * 21).test == "sign flips, Monte Carlo"


def test_independent_rows_are_counted_and_clusters_flipped() -> None:
    differences = [1, 1, 1, 1, 0, -1]
    alone = paired_test(differences, range(6), counted="exact McNemar")
    assert (alone.test, alone.p) == ("exact McNemar", pytest.approx(2 * (1 + 5) / 32))
    # Clusters of two add up to 2, 2 and -1: of the totals +-5, +-3, +-1, +-1 four reach |3|.
    together = paired_test(differences, same(6, 2), counted="exact McNemar")
    assert (together.test, together.p) == ("sign flips, exact", 4 / 8)


def test_counting_and_flipping_independent_rows_is_the_same_test() -> None:
    differences = [1] * 9 + [-1] * 3 + [0] * 4
    counted = paired_test(differences, range(16), counted="exact McNemar")
    assert paired_test(differences, range(16)).p == pytest.approx(counted.p)


def test_the_cluster_test_keeps_its_level_where_mcnemar_does_not() -> None:
    """40 clusters of 6 rows that all change alike, by no real difference."""
    random = np.random.default_rng(9)
    false_alarms = {"clusters": 0, "rows": 0}
    for _ in range(200):
        moved = np.repeat(random.choice([-1, 0, 1], size=20), 6)
        false_alarms["clusters"] += paired_test(moved, same(120, 6), counted="exact McNemar").p < 0.05
        false_alarms["rows"] += paired_test(moved, range(120), counted="exact McNemar").p < 0.05
    assert false_alarms["clusters"] <= 18 < 60 < false_alarms["rows"]


def test_holm_by_hand() -> None:
    """Sorted 0.01 0.02 0.03 0.5: times 4, 3, 2, 1, and never below the one before."""
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([0.03]) == pytest.approx([0.03])
    assert holm([]) == []


# ── agreement ──


# Fleiss, Psychological Bulletin 76 (1971), table 1: 30 patients, 6 psychiatrists, 5 diagnoses.
FLEISS = """
0 0 0 6 0   0 3 0 0 3   0 1 4 0 1   0 0 0 0 6   0 3 0 3 0   2 0 4 0 0   0 0 4 0 2   2 0 3 1 0   2 0 0 4 0   0 0 0 0 6
1 0 0 5 0   1 1 0 4 0   0 3 3 0 0   1 0 0 5 0   0 2 0 3 1   0 0 5 0 1   3 0 0 1 2   5 1 0 0 0   0 2 0 4 0   1 0 2 0 3
0 0 0 0 6   0 1 0 5 0   0 2 0 1 3   2 0 0 4 0   1 0 0 4 1   0 5 0 1 0   4 0 0 0 2   0 2 0 4 0   1 0 5 0 0   0 0 0 0 6
"""


def test_kappa_of_fleiss_own_example() -> None:
    counts = np.array(FLEISS.split(), dtype=int).reshape(30, 5)
    votes = [[f"diagnosis {k}" for k, n in enumerate(row) for _ in range(n)] for row in counts.tolist()]
    found = agreement(votes)
    assert found is not None and found.kappa is not None
    assert round(found.kappa, 3) == 0.430
    assert (found.per_item, found.items, found.votes, found.unparsable) == (6, 30, 180, 0)


def test_kappa_by_hand() -> None:
    """Two votes on four items: yes yes, yes yes, no no, yes no. Agreement 3/4, by chance (5/8)^2 + (3/8)^2 = 34/64."""
    found = agreement([(True, True), (True, True), (False, False), (True, False)])
    assert found is not None
    assert found.kappa == pytest.approx((3 / 4 - 34 / 64) / (1 - 34 / 64))


def test_items_without_all_votes_are_left_out_of_kappa_and_unparsable_votes_counted() -> None:
    whole = [(True, True), (False, False), (True, False)]
    found, alone = agreement([*whole, (True, None), (False,), (None, None), ()]), agreement(whole)
    assert found is not None and alone is not None
    assert (found.items, found.votes, found.unparsable) == (3, 11, 3)
    assert found.kappa == alone.kappa


@pytest.mark.parametrize("votes", [[(True, True), (True, True)], [(True,), (False,)], [(None, True)]])
def test_kappa_is_undefined_without_two_votes_or_two_kinds_of_them(votes: list[tuple[bool | None, ...]]) -> None:
    found = agreement(votes)
    assert found is not None and found.kappa is None


def test_there_is_no_agreement_without_votes() -> None:
    assert agreement([(), ()]) is None


# ── properties ──

rows = st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 8)), min_size=2, max_size=40)


@settings(max_examples=40, deadline=None)
@given(rows)
def test_swapping_negates_the_difference_and_keeps_p(pairs: list[tuple[int, int]]) -> None:
    differences, clusters = [value for value, _ in pairs], [cluster for _, cluster in pairs]
    one = difference_interval(differences, clusters, resamples=500)
    other = difference_interval([-value for value in differences], clusters, resamples=500)
    assert other.estimate.value == -one.estimate.value
    if one.estimate.low is not None and one.estimate.high is not None:
        assert (other.estimate.low, other.estimate.high) == pytest.approx((-one.estimate.high, -one.estimate.low))
        assert one.estimate.low <= one.estimate.value + 1e-9 and one.estimate.value <= one.estimate.high + 1e-9
    assert other.p == pytest.approx(one.p) if one.p is not None else other.p is None
    tests = [paired_test(sign, clusters, counted="x") for sign in (differences, [-value for value in differences])]
    assert tests[0].p == pytest.approx(tests[1].p) and 0 < tests[0].p <= 1


@settings(max_examples=40, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_has_no_effect(pairs: list[tuple[int, int]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = []
    for some in (pairs, shuffled):
        values, clusters = [value / 3 for value, _ in some], [cluster for _, cluster in some]
        right = [int(value > 0) for value in values]
        found.append(
            (
                difference_interval(values, clusters, resamples=200),
                paired_test(values, clusters),
                share_interval(right, clusters),
            )
        )
    assert found[0] == found[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=40))
def test_effective_size_is_positive_and_never_more_than_there_are(pairs: list[tuple[bool, int]]) -> None:
    right, clusters = [int(value) for value, _ in pairs], [cluster for _, cluster in pairs]
    assert 0 < effective_size(right, clusters) <= len(pairs) + 1e-9
    found = share_interval(right, clusters)
    assert found.low is not None and found.high is not None
    assert 0 <= found.low <= found.value + 1e-9 and found.value <= found.high + 1e-9 <= 1 + 2e-9
