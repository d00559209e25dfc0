"""Statistics of evaluations whose rows may belong together. Arrays in, numbers out.

A *cluster* is a set of rows that are not independent of each other: the rows of one story, or several responses to one
prompt. Everything here takes clusters as the independent units, and is the textbook method where each holds one row.
Values are finite numbers: rows without a verdict are left out, and counted, before they come here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

# statsmodels is imported where it is used: it takes a second or two, and the report reads tables without it.

Floats = NDArray[np.float64]

RESAMPLES = 10_000
EXACT_CLUSTERS = 20  # 2^20 patterns of signs: a tenth of a second
_BLOCK = 2_000_000  # random numbers at a time: bounds the memory
_ROUNDING = 1e-9  # sums closer than this are equal: floats added in another order


@dataclass(frozen=True)
class Estimate:
    """A quantity with its confidence interval; no bounds where the data cannot say how much it varies."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """A mean difference with its interval, and the two-sided p of "there is none" from the same bootstrap."""

    estimate: Estimate
    p: float | None  # None where there is no interval


@dataclass(frozen=True)
class Tested:
    """A two-sided test of "no difference": which one it was, and its p."""

    test: str
    p: float


@dataclass(frozen=True)
class Agreement:
    """How far the votes on each item agree."""

    per_item: int  # votes asked for on each
    votes: int
    unparsable: int  # votes that could not be read
    items: int  # with every vote readable: those that kappa is over
    kappa: float | None  # None where it is not defined


def cluster_totals(values: ArrayLike, clusters: Sequence[Hashable]) -> tuple[Floats, Floats]:
    """The (M,) sums and (M,) sizes of M clusters, in the order of their names; the order of the rows has no effect.

    Args:
        values: (N,) finite numbers.
        clusters: (N,) the cluster of each.

    Raises:
        ValueError: there are none, the two differ in length, or a value is not finite.
    """
    found = np.asarray(values, dtype=float)
    if found.shape != (len(clusters),) or not found.size:
        raise ValueError(f"values of shape {found.shape} but {len(clusters)} clusters")
    if not np.isfinite(found).all():
        raise ValueError("a value is not finite; rows without one are to be left out before")
    places = {name: place for place, name in enumerate(sorted(set(clusters), key=repr))}
    index = np.array([places[name] for name in clusters])
    order = np.lexsort((found, index))  # a sum of floats depends on the order of its terms
    sums: Floats = np.bincount(index[order], weights=found[order]).astype(np.float64)
    sizes: Floats = np.bincount(index).astype(np.float64)
    return sums, sizes


# ── intervals ──


def effective_size(right: ArrayLike, clusters: Sequence[Hashable], confidence: float = 0.95) -> float:
    """How many independent responses the (N,) right (1) or wrong (0) ones of M clusters are worth, at most N.

    N / deff x (t_(N-1) / t_(M-1))^2: Kish's design effect deff is the variance of the share between clusters (Rao and
    Scott 1992, the ratio estimator) over that of N independent responses, p(1 - p)/(N - 1). The t quantiles allow for
    the few clusters it is estimated from (Korn and Graubard 1998). deff below 1 is taken as 1: where clusters happen to
    look more alike than independent rows would, there is no more information. With one row a cluster this is N exactly.

    Where all are right, or all wrong, or there is one cluster, nothing can be estimated: then every cluster is taken
    to be of one piece, N^2 / sum of squared sizes (M for clusters of one size).
    """
    sums, sizes = cluster_totals(right, clusters)
    n, m = float(sizes.sum()), len(sizes)
    if n == m:
        return n
    share = sums.sum() / n
    if m == 1 or share in (0.0, 1.0):
        return float(n * n / np.square(sizes).sum())
    between = m / (m - 1) * np.square(sums - share * sizes).sum() / n**2
    design_effect = max(1.0, between / (share * (1 - share) / (n - 1)))
    upper = (1 + confidence) / 2
    return float(n / design_effect * (stats.t.ppf(upper, n - 1) / stats.t.ppf(upper, m - 1)) ** 2)


def share_interval(right: ArrayLike, clusters: Sequence[Hashable], confidence: float = 0.95) -> Estimate:
    """The share of (N,) right (1) or wrong (0) responses with Wilson's interval (1927) at their effective size."""
    from statsmodels.stats.proportion import proportion_confint

    hits = np.asarray(right, dtype=float)
    n = effective_size(hits, clusters, confidence)
    share = float(hits.mean())
    low, high = proportion_confint(share * n, n, alpha=1 - confidence, method="wilson")
    return Estimate(share, max(0.0, float(low)), min(1.0, float(high)))


def mean_interval(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The mean of (N,) values with the bootstrap interval of `difference_interval`."""
    return difference_interval(values, clusters, confidence=confidence, resamples=resamples, seed=seed).estimate


def difference_interval(
    differences: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """The mean of (N,) paired differences; whole clusters are drawn with replacement.

    The interval has Hesterberg's (2015) expanded percentiles, Phi(-t_(M-1) sqrt(M/(M-1))): plain percentiles are too
    narrow for few clusters M, by their normal quantile and their division by M; these equal the t interval where means
    are normal. BCa corrects for skewness instead, of which differences have little, and has no acceleration where
    nothing differs. p is the smallest alpha at which the interval leaves 0 out, from the resamples at or beyond 0, the
    value itself counted among them.

    One cluster has no interval. Where every cluster is the same the interval is a point.
    """
    sums, sizes = cluster_totals(differences, clusters)
    value, m = float(sums.sum() / sizes.sum()), len(sizes)
    if m == 1:
        return Difference(Estimate(value, None, None), None)
    drawn = np.concatenate(list(_resampled_means(sums, sizes, resamples, seed)))
    wider = math.sqrt(m / (m - 1))
    tail = stats.norm.cdf(-wider * stats.t.ppf((1 + confidence) / 2, m - 1))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    beyond = min((drawn <= _ROUNDING).sum(), (drawn >= -_ROUNDING).sum())
    z = stats.norm.ppf(min(0.5, (beyond + 1) / (resamples + 1)))
    return Difference(Estimate(value, float(low), float(high)), float(2 * stats.t.cdf(z / wider, m - 1)))


def _resampled_means(sums: Floats, sizes: Floats, resamples: int, seed: int) -> Iterator[Floats]:
    random, m = np.random.default_rng(seed), len(sums)
    for size in _blocks(resamples, m):
        chosen = random.integers(0, m, size=(size, m))
        yield sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)


def _blocks(total: int, width: int) -> Iterator[int]:
    """Sizes that add up to `total`; a block of that many rows of `width` numbers fits into memory."""
    block = max(1, _BLOCK // width)
    for start in range(0, total, block):
        yield min(block, total - start)


# ── tests ──


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact test of McNemar (1947) on discordant pairs: a two-sided binomial test with 1/2; 1 without any."""
    from statsmodels.stats.contingency_tables import mcnemar as of_table

    return float(of_table([[0, only_first], [only_second, 0]], exact=True).pvalue)


def sign_flips(sums: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Tested:
    """Permutation test that the (M,) summed differences of clusters are symmetric about 0 (Fisher 1935).

    If the two evaluations are alike, each cluster's sum could as well have the other sign. p is the share of all sign
    patterns whose |total| reaches the observed one: of all 2^M up to 20 clusters with a difference, else of seeded
    random ones, the observed one counted among them (Phipson and Smyth 2010).
    """
    moved = np.asarray(sums, dtype=float)
    moved = np.sort(moved[np.abs(moved) > _ROUNDING])
    observed = abs(moved.sum()) - _ROUNDING
    if len(moved) <= EXACT_CLUSTERS:
        totals = np.zeros(1)
        for difference in moved:
            totals = np.concatenate([totals + difference, totals - difference])
        return Tested("sign flips, exact", float((np.abs(totals) >= observed).mean()))
    random, reached = np.random.default_rng(seed), 0
    for size in _blocks(resamples, len(moved)):
        signs = random.integers(0, 2, size=(size, len(moved))) * 2 - 1
        reached += int((np.abs(signs @ moved) >= observed).sum())
    return Tested("sign flips, Monte Carlo", (reached + 1) / (resamples + 1))


def paired_test(
    differences: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    counted: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Tested:
    """Test of (N,) paired differences: by counting where they are independent signs, else by flipping clusters.

    Args:
        differences: (N,) finite numbers.
        clusters: (N,) the cluster of each.
        counted: for differences of -1, 0 and 1, what the exact binomial test of their signs is called here ("exact
            McNemar"): used where every cluster has one row. None: they are scores, for `sign_flips`.
        resamples: random sign patterns, where there are too many for all.
        seed: of these.
    """
    sums, sizes = cluster_totals(differences, clusters)
    if counted is not None and (sizes == 1).all():
        return Tested(counted, mcnemar(int((sums > 0).sum()), int((sums < 0).sum())))
    return sign_flips(sums, resamples=resamples, seed=seed)


def holm(ps: Sequence[float]) -> list[float]:
    """The p of several tests, in their order, adjusted so that they bound the chance of any false alarm (Holm 1979)."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(ps, method="holm")[1]] if ps else []


# ── agreement ──


def agreement(votes: Sequence[Sequence[Hashable | None]]) -> Agreement | None:
    """Fleiss' kappa (1971) of the votes on each item: agreement beyond that of random votes in the same proportions.

    1 is perfect and 0 no more than by chance. Over the items that have the full number of readable votes (the most that
    any item has). Not defined for one vote an item, for no such item, or where all votes are the same: nothing then
    tells a judge that agrees from one that always says the same.

    Args:
        votes: for each item its votes; None is one that could not be read.

    Returns:
        None where there are no votes at all.
    """
    per_item = max((len(given) for given in votes), default=0)
    if per_item == 0:
        return None
    given = [vote for item in votes for vote in item]
    whole = [item for item in votes if len(item) == per_item and None not in item]
    categories = sorted({vote for item in whole for vote in item}, key=repr)
    kappa = None
    if per_item > 1 and len(categories) > 1:
        from statsmodels.stats.inter_rater import fleiss_kappa

        kappa = float(fleiss_kappa(np.array([[item.count(name) for name in categories] for item in map(list, whole)])))
    return Agreement(per_item, len(given), given.count(None), len(whole), kappa)
