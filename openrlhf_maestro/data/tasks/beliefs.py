"""Social reasoning: where does someone believe a thing to be, who may not have seen every move?

A careful writer asks what the person saw last, a careless one answers where the thing really is, or where it was.
"""

from __future__ import annotations

import random

from openrlhf_maestro.data.tasks.family import Draft, Family, same_words
from openrlhf_maestro.data.tasks.words import CONTAINERS, NAMES, THINGS

_MOVES = (1, 2)
_ASKED_ABOUT_OWNER_SHARE = 0.7


def _draft(rng: random.Random) -> Draft:
    owner, mover = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    places = rng.sample(CONTAINERS, rng.choice(_MOVES) + 1)
    story = [f"{owner} puts the {thing} in the {places[0]}."]
    last_seen = places[0]
    for place in places[1:]:
        seen = rng.random() < 0.5
        last_seen = place if seen else last_seen
        story.append(f"{mover} moves it to the {place}.")
        story.append(f"{owner} sees this." if seen else f"{owner} is away.")
    asked, believed = (owner, last_seen) if rng.random() < _ASKED_ABOUT_OWNER_SHARE else (mover, places[-1])
    return Draft(
        prompt=" ".join([*story, f"Where will {asked} look?"]),
        reference=f"the {believed}",
        careful_reasoning=f"{asked} last saw the {believed}.",
        careless_reasoning=f"I think of {asked}.",
        mistake=f"the {rng.choice([place for place in places if place != believed])}",
    )


FALSE_BELIEF = Family("social", "social", _draft, same_words)
