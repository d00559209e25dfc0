"""Micro-batches by tokens: which responses go together, so that ranks run as many forwards and little is padding."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int, count: int = 1) -> list[list[int]]:
    """The fewest micro-batches of at most `budget` tokens, or `count` where that is more.

    A micro-batch of n sequences, the longest of T tokens, is n x T tokens: padding takes memory and time as well.
    Sequences are taken in order of length, which no other order beats, and the largest micro-batches are halved until
    there are `count`.

    Args:
        lengths: tokens of each sequence.
        budget: most tokens a micro-batch, padding counted.
        count: least number of micro-batches.

    Returns:
        Indices into `lengths`, longest first, one list a micro-batch, none empty; the costliest micro-batch first.

    Raises:
        ValueError: a sequence is longer than the budget, or there are fewer sequences than `count`.
    """
    if max(lengths, default=0) > budget:
        raise ValueError(f"a sequence of {max(lengths)} tokens does not fit a micro-batch of {budget} tokens")
    if len(lengths) < count:
        raise ValueError(f"{len(lengths)} sequences cannot fill {count} micro-batches")
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])

    def cost(batch: list[int]) -> int:
        return lengths[batch[0]] * len(batch)

    while len(batches) < count:
        largest = max((batch for batch in batches if len(batch) > 1), key=cost)
        position, half = batches.index(largest), len(largest) // 2
        batches[position : position + 1] = [largest[:half], largest[half:]]
    return sorted(batches, key=cost, reverse=True)


def pack_for_ranks(lengths: Sequence[int], budget: int, ranks: int) -> list[list[int]]:
    """`pack` into a multiple of `ranks` micro-batches, dealt so that equal shares of the list are equal work.

    Rank r of `ranks` takes the r-th of `ranks` equally long parts of the list. The n-th micro-batches of all ranks are
    of about the same cost: under ZeRO-3 ranks wait for each other at every forward.

    Raises:
        ValueError: as `pack`.
    """
    batches = pack(lengths, budget)
    batches = pack(lengths, budget, math.ceil(len(batches) / ranks) * ranks)
    return [batch for rank in range(ranks) for batch in batches[rank::ranks]]


def deal(lengths: Sequence[int], batch_size: int, ranks: int) -> list[int]:
    """The order in which the responses of a step go to the ranks, so that every update has the same ones.

    Update u is on responses u x `batch_size` to (u + 1) x `batch_size`, however many ranks there are; within an update
    each rank gets as many, of about the same number of tokens.

    Args:
        lengths: tokens of each response; a multiple of `batch_size` of them.
        batch_size: responses an update, a multiple of `ranks`.
        ranks: data-parallel ranks; rank r takes the r-th of `ranks` equally long parts of the result.

    Returns:
        A permutation of the responses' indices: rank by rank, update by update.
    """
    parts: list[list[int]] = [[] for _ in range(ranks)]
    for start in range(0, len(lengths), batch_size):
        update = sorted(range(start, start + batch_size), key=lambda index: (-lengths[index], index))
        for row in range(0, batch_size, ranks):
            dealt = update[row : row + ranks]
            # Back and forth, or the first rank would get the longest of every row.
            for part, index in zip(parts, dealt if row // ranks % 2 == 0 else dealt[::-1], strict=True):
                part.append(index)
    return [index for part in parts for index in part]
