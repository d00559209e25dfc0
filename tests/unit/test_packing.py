"""Micro-batches by tokens."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_maestro.workers.packing import deal, pack, pack_for_ranks

BUDGET = 20
LENGTHS = st.lists(st.integers(1, BUDGET), min_size=1, max_size=30)


def cost(batch: list[int], lengths: list[int]) -> int:
    return max(lengths[index] for index in batch) * len(batch)


def test_padding_is_counted() -> None:
    """9 + 8 + 3 tokens are 20, but padded they are 27; 9 and 8 padded are 18."""
    assert pack([8, 3, 9], 20) == [[2, 0], [1]]
    assert pack([8, 3, 9], 27) == [[2, 0, 1]]


def test_more_micro_batches_are_halves_of_the_largest() -> None:
    assert pack([4, 4, 4, 4], 16) == [[0, 1, 2, 3]]
    assert sorted(map(len, pack([4, 4, 4, 4], 16, count=3))) == [1, 1, 2]
    assert sorted(map(len, pack([4, 4, 4, 4], 16, count=4))) == [1, 1, 1, 1]


@given(LENGTHS, st.data())
def test_every_sequence_once_within_the_budget(lengths: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(lengths)))
    batches = pack(lengths, BUDGET, count)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert all(batches)
    assert max(cost(batch, lengths) for batch in batches) <= BUDGET
    assert len(batches) == max(count, len(pack(lengths, BUDGET)))


@given(st.lists(st.integers(1, BUDGET), min_size=1, max_size=6))
def test_no_division_has_fewer(lengths: list[int]) -> None:
    """All divisions of up to six sequences are tried."""

    def divisions(indices: list[int]) -> list[list[list[int]]]:
        if not indices:
            return [[]]
        first, rest = indices[0], indices[1:]
        found = []
        for division in divisions(rest):
            found.append([[first], *division])
            found += [
                [*division[:place], [first, *batch], *division[place + 1 :]] for place, batch in enumerate(division)
            ]
        return found

    allowed = [
        len(division)
        for division in divisions(list(range(len(lengths))))
        if all(cost(batch, lengths) <= BUDGET for batch in division)
    ]
    assert len(pack(lengths, BUDGET)) == min(allowed)


@given(st.integers(1, 4), st.integers(1, 8), st.data())
def test_ranks_get_as_many_micro_batches_of_about_the_same_cost(ranks: int, share: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, BUDGET), min_size=ranks * share, max_size=ranks * share))
    batches = pack_for_ranks(lengths, BUDGET, ranks)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert len(batches) % ranks == 0
    assert len(batches) < len(pack(lengths, BUDGET)) + ranks
    a_rank = len(batches) // ranks
    costs = [[cost(batch, lengths) for batch in batches[rank * a_rank : (rank + 1) * a_rank]] for rank in range(ranks)]
    # At each forward no rank has less to do than any has at the next.
    for now, later in itertools.pairwise(zip(*costs, strict=True)):
        assert min(now) >= max(later)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="21 tokens does not fit a micro-batch of 20"):
        pack([3, 21], 20)
    with pytest.raises(ValueError, match="2 sequences cannot fill 3 micro-batches"):
        pack([3, 4], 20, count=3)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.data())
def test_updates_have_the_same_responses_whatever_the_ranks(
    ranks: int, share: int, updates: int, data: st.DataObject
) -> None:
    size = ranks * share
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=size * updates, max_size=size * updates))
    order = deal(lengths, size, ranks)
    parts = [order[start : start + updates * share] for start in range(0, len(order), updates * share)]
    for update in range(updates):
        own = [part[update * share : (update + 1) * share] for part in parts]
        assert sorted(itertools.chain(*own)) == list(range(update * size, (update + 1) * size))
        tokens = [sum(lengths[index] for index in rank) for rank in own]
        assert max(tokens) - min(tokens) <= max(lengths)


def test_responses_are_dealt_back_and_forth() -> None:
    """Lengths 8 7 6 5: the first rank gets 8 and 5, the second 7 and 6."""
    assert deal([5, 6, 7, 8], batch_size=4, ranks=2) == [3, 0, 2, 1]
