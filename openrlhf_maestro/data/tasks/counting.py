"""Reasoning by counting: how many are there in all, of several things?

A careful writer adds up one by one, a careless one is off by one.
"""

from __future__ import annotations

import random

from openrlhf_maestro.data.tasks.family import Draft, Family, same_words
from openrlhf_maestro.data.tasks.words import ANIMALS, THINGS

_ITEMS = (2, 3)
_HIGHEST = 4


def _adding_up(counts: list[int]) -> str:
    """The partial sums, as in `2 and 3 is 5, 5 and 1 is 6.`"""
    steps = []
    total = counts[0]
    for count in counts[1:]:
        steps.append(f"{total} and {count} is {total + count}")
        total += count
    return f"{', '.join(steps)}."


def _draft(rng: random.Random) -> Draft:
    words = rng.sample(ANIMALS + THINGS, rng.choice(_ITEMS))
    counts = [rng.randint(1, _HIGHEST) for _ in words]
    listed = " ".join(f"{count} {word}" for count, word in zip(counts, words, strict=True))
    return Draft(
        prompt=f"How many in all: {listed}?",
        reference=str(sum(counts)),
        careful_reasoning=_adding_up(counts),
        careless_reasoning="I count them.",
        mistake=str(sum(counts) + rng.choice((-1, 1))),
    )


COUNTING = Family("counting", "reasoning", _draft, same_words)
