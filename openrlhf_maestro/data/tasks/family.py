"""What a family of prompts is, and the form every right response has.

Demonstrations come from two kinds of writer, as crowd-sourced ones do. A careful writer states what matters and is
right. A careless one says something empty and often makes the mistake that is typical of the family. A policy that
imitates both starts somewhere in the middle, and a reward can teach it whom to follow. References are always right.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

_RESPONSE = re.compile(r"\s*<think>(?P<think>.*)</think>\s*<answer>(?P<answer>.*)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")


CARELESS_SHARE = 0.5
MISTAKE_SHARE = 0.7


@dataclass(frozen=True)
class Example:
    """One prompt: an answer that is right, a demonstration that may be wrong, and a pair for a preference model."""

    prompt: str
    reference: str
    response: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Draft:
    """A prompt with all that a careful and a careless writer need."""

    prompt: str
    reference: str
    careful_reasoning: str
    careless_reasoning: str
    mistake: str

    def demonstrate(self, rng: random.Random) -> Example:
        """Draw who writes the demonstration, and whether a careless writer slips."""
        chosen = respond(self.careful_reasoning, self.reference)
        rejected = respond(self.careless_reasoning, self.mistake)
        if rng.random() >= CARELESS_SHARE:
            response = chosen
        elif rng.random() < MISTAKE_SHARE:
            response = rejected
        else:
            response = respond(self.careless_reasoning, self.reference)
        return Example(self.prompt, self.reference, response, chosen, rejected)


def respond(reasoning: str, answer: str) -> str:
    """A response in the format."""
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


@dataclass(frozen=True)
class Family:
    """A source of prompts and the rule that judges answers to them.

    `draft` draws a prompt; it depends on the generator it is given and on nothing else.
    `is_right(prompt, reference, answer)` judges the text between the answer tags, stripped of white space around it.
    """

    name: str
    category: str
    draft: Callable[[random.Random], Draft]
    is_right: Callable[[str, str, str], bool]

    def example(self, rng: random.Random) -> Example:
        """One prompt with its demonstration."""
        return self.draft(rng).demonstrate(rng)


def answer_of(response: str) -> str | None:
    """Text between the answer tags, stripped, or None where the response breaks the format.

    The format: the whole response is one `<think>...</think>`, then one `<answer>...</answer>`, white space around
    them allowed, no further tag anywhere (METHOD.md, section 2).
    """
    match = _RESPONSE.fullmatch(response)
    if match is None or _TAG.search(match["think"]) or _TAG.search(match["answer"]):
        return None
    return match["answer"].strip()


def same_words(prompt: str, reference: str, answer: str) -> bool:
    """Whether the answer is the reference, white space aside: the rule of families with one right answer."""
    return answer.split() == reference.split()
