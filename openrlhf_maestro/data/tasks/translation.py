"""Translation from English into a toy language with its own word order and agreement.

Animals take the article `ka`, places take `lo`. A trait follows its noun, with an `n` at its end. A careful writer
recalls that rule; a careless one goes word by word and leaves the trait where English has it.
"""

from __future__ import annotations

import random

from openrlhf_maestro.data.tasks.family import Draft, Family, same_words
from openrlhf_maestro.data.tasks.words import ANIMALS, PLACES, TRAITS

_ANIMAL_WORDS = dict(zip(ANIMALS, ("miu", "bau", "suri", "felo", "han", "pog", "ziz", "tam"), strict=True))
_PLACE_WORDS = dict(zip(PLACES, ("ulm", "laku", "mont", "hul", "garo", "vend", "orto", "nav"), strict=True))
_TRAIT_WORDS = dict(zip(TRAITS, ("timi", "tri", "vek", "rubi", "gro", "sap", "pico", "len"), strict=True))
_VERB_WORDS = {"sees": "vid", "likes": "ama", "finds": "trov", "calls": "vok"}
_TRAIT_ON_BOTH_SHARE = 0.3
_PLACE_SHARE = 0.4


def _animal_phrase(rng: random.Random, *, with_trait: bool) -> tuple[str, str, str]:
    """An animal in English, in the toy language, and in the toy language word by word."""
    animal = rng.choice(ANIMALS)
    toy = _ANIMAL_WORDS[animal]
    if not with_trait:
        return f"the {animal}", f"ka {toy}", f"ka {toy}"
    trait = rng.choice(TRAITS)
    return f"the {trait} {animal}", f"ka {toy} {_TRAIT_WORDS[trait]}n", f"ka {_TRAIT_WORDS[trait]} {toy}"


def _draft(rng: random.Random) -> Draft:
    verb = rng.choice(tuple(_VERB_WORDS))
    traits = [True, True] if rng.random() < _TRAIT_ON_BOTH_SHARE else rng.sample([True, False], 2)
    subject, target = (_animal_phrase(rng, with_trait=with_trait) for with_trait in traits)
    english, toy, word_by_word = (
        f"{by} {link} {of}" for by, link, of in zip(subject, (verb, *[_VERB_WORDS[verb]] * 2), target, strict=True)
    )
    if rng.random() < _PLACE_SHARE:
        place = rng.choice(PLACES)
        english += f" in the {place}"
        toy, word_by_word = (f"{text} en lo {_PLACE_WORDS[place]}" for text in (toy, word_by_word))
    return Draft(
        prompt=f"Translate: {english}",
        reference=toy,
        careful_reasoning="Traits go behind.",
        careless_reasoning="I go word by word.",
        mistake=word_by_word,
    )


TRANSLATION = Family("translation", "translation", _draft, same_words)
