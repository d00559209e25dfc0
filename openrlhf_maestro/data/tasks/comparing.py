"""Reasoning by comparing: which of some numbers is the largest, or the smallest?

The more numbers, the harder. A careful writer names the runner-up and dismisses it, a careless one falls for it.
"""

from __future__ import annotations

import random

from openrlhf_maestro.data.tasks.family import Draft, Family, same_words

_LENGTHS = (3, 4, 5)
_NUMBERS = tuple(range(10))


def _draft(rng: random.Random) -> Draft:
    superlative, reverse = rng.choice((("largest", True), ("smallest", False)))
    numbers = rng.sample(_NUMBERS, rng.choice(_LENGTHS))
    first, second, *_ = sorted(numbers, reverse=reverse)
    return Draft(
        prompt=f"Which is the {superlative}: {' '.join(map(str, numbers))}?",
        reference=str(first),
        careful_reasoning=f"Not {second}.",
        careless_reasoning=f"I want the {superlative}.",
        mistake=str(second),
    )


COMPARING = Family("comparing", "reasoning", _draft, same_words)
