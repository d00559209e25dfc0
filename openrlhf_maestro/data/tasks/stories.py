"""Creative writing: a short story that must meet constraints, and may meet them in thousands of ways.

A prompt asks for a number of sentences, a character with a trait, a thing, a place and a mood for the end. The
rule (`is_good_story`) checks each of these and that every sentence is sane. It does not compare with the reference.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass

from openrlhf_maestro.data.tasks.family import Draft, Family
from openrlhf_maestro.data.tasks.words import ANIMALS, PLACES, THINGS, TRAITS

_NUMBERS = {"two": 2, "three": 3}
_OPENINGS = (
    "A {trait} {animal} lived in the {place}.",
    "Once a {trait} {animal} came to the {place}.",
    "There was a {trait} {animal} in the {place}.",
    "In the {place} sat a {trait} {animal}.",
)
_MIDDLES = (
    "It found a {thing} there.",
    "One day it saw a {thing}.",
    "The {animal} lost a {thing} at night.",
    "It took the {thing} home.",
)
_ENDS = {
    "happy": (
        "At last it was happy.",
        "The {animal} sang and was glad.",
        "Then it was glad.",
        "The {animal} was happy.",
    ),
    "dark": ("At last it was lost.", "The {animal} cried and was alone.", "Then it cried.", "The {animal} was alone."),
}
_MOOD_WORDS = {"happy": {"happy", "glad"}, "dark": {"lost", "alone", "cried"}}
_VERBS = {"lived", "came", "was", "sat", "found", "saw", "lost", "took", "slept", "ran", "sang", "cried"}
_ARTICLES = {"a", "the"}
_JOINERS = {"and", "in", "to", "at", *_ARTICLES}
_NOUNS = {*ANIMALS, *THINGS, *PLACES, "night", "day"}
_MODIFIERS = {*TRAITS, "cold"}
_WORDS = {
    *_NOUNS, *_MODIFIERS, *_VERBS, *_JOINERS, *_MOOD_WORDS["happy"], *_MOOD_WORDS["dark"],
    "there", "then", "once", "one", "it", "last", "home",
}  # fmt: skip
_MIN_WORDS, _MAX_WORDS = 3, 12

_PROMPT = re.compile(
    r"Write a story of (?P<number>\w+) sentences about a (?P<trait>\w+) (?P<animal>\w+), "
    r"a (?P<thing>\w+) and a (?P<place>\w+) with a (?P<mood>\w+) end\."
)


@dataclass(frozen=True)
class Brief:
    """What a prompt of this family asks for."""

    sentences: int
    trait: str
    animal: str
    thing: str
    place: str
    mood: str

    @classmethod
    def parse(cls, prompt: str) -> Brief:
        """Read the constraints back from the prompt. Raises ValueError for a prompt of another family."""
        match = _PROMPT.fullmatch(prompt)
        if match is None or match["number"] not in _NUMBERS or match["mood"] not in _ENDS:
            raise ValueError(f"not a prompt of the creative family: {prompt!r}")
        return cls(
            _NUMBERS[match["number"]], match["trait"], match["animal"], match["thing"], match["place"], match["mood"]
        )


def is_sane_sentence(sentence: str) -> bool:
    """Whether a sentence (without its full stop) reads as one.

    It starts with its only capital letter, has 3 to 12 known words and a verb, repeats no word at once, follows each
    article by a noun (with a modifier between them or not), and does not end in an article or a preposition.
    """
    words = sentence.lower().split()
    if sentence != sentence.capitalize() or sentence != " ".join(sentence.split()):
        return False
    if not _MIN_WORDS <= len(words) <= _MAX_WORDS or not set(words) <= _WORDS or not set(words) & _VERBS:
        return False
    if words[-1] in _JOINERS or any(word == after for word, after in itertools.pairwise(words)):
        return False
    for i, word in enumerate(words):
        if word in _ARTICLES:
            rest = words[i + 1 :]
            head = rest[1:2] if rest[0] in _MODIFIERS else rest[:1]
            if not head or head[0] not in _NOUNS:
                return False
    return True


def is_good_story(prompt: str, reference: str, answer: str) -> bool:
    """Whether the answer is a story that the prompt asks for; the reference is one of many and plays no part.

    The asked number of sentences, each sane and none twice; the character appears with its trait, the thing and the
    place appear; the last sentence has a word of the asked mood and none of the other.
    """
    brief = Brief.parse(prompt)
    if not answer.endswith("."):
        return False
    sentences = answer[:-1].split(". ")
    if len(sentences) != brief.sentences or len(set(sentences)) != len(sentences):
        return False
    if not all(is_sane_sentence(sentence) for sentence in sentences):
        return False
    words = " ".join(sentences).lower().split()
    if f" {brief.trait} {brief.animal} " not in f" {' '.join(words)} " or not {brief.thing, brief.place} <= set(words):
        return False
    last = set(sentences[-1].lower().split())
    return bool(last & _MOOD_WORDS[brief.mood]) and not any(
        last & found for mood, found in _MOOD_WORDS.items() if mood != brief.mood
    )


def _tell(rng: random.Random, slots: dict[str, str], number: str, mood: str) -> str:
    """A story from the stock of sentences; `slots` has trait, animal, thing and place."""
    opening = rng.choice(_OPENINGS)
    parts = [opening[:-1] + " and found a {thing}."] if _NUMBERS[number] == 2 else [opening, rng.choice(_MIDDLES)]
    return " ".join([*parts, rng.choice(_ENDS[mood])]).format(**slots)


def _draft(rng: random.Random) -> Draft:
    number, other_number = rng.sample(tuple(_NUMBERS), 2)
    mood, other_mood = rng.sample(tuple(_ENDS), 2)
    stock = {"trait": TRAITS, "animal": ANIMALS, "thing": THINGS, "place": PLACES}
    slots = {slot: rng.choice(words) for slot, words in stock.items()}
    prompt = (
        f"Write a story of {number} sentences about a {slots['trait']} {slots['animal']}, "
        f"a {slots['thing']} and a {slots['place']} with a {mood} end."
    )
    forgotten = rng.choice(("number", "mood", "trait", "thing", "place"))
    told = dict(slots)
    if forgotten in stock:
        told[forgotten] = rng.choice([word for word in stock[forgotten] if word != slots[forgotten]])
    return Draft(
        prompt=prompt,
        reference=_tell(rng, slots, number, mood),
        careful_reasoning=f"{number}, {slots['trait']} {slots['animal']}, {slots['thing']}, {slots['place']}, {mood}.",
        careless_reasoning="I make it up.",
        mistake=_tell(
            rng,
            told,
            other_number if forgotten == "number" else number,
            other_mood if forgotten == "mood" else mood,
        ),
    )


CREATIVE = Family("creative", "creative", _draft, is_good_story)
