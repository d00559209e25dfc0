"""Synthetic preference pairs: a careful response, and the same prompt answered badly in one known way."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from openrlhf_maestro.data.tasks import respond

Row = Mapping[str, str]


@dataclass(frozen=True)
class Pair:
    """A prompt with a response to prefer; `flaw` names what is wrong with the other one."""

    prompt: str
    chosen: str
    rejected: str
    flaw: str


def _reasoning(row: Row) -> str:
    return row["chosen"].partition("</think>")[0].removeprefix("<think>")


def _mistaken(row: Row, rng: random.Random, pool: Sequence[Row]) -> str:
    """A careless writer's response, with the mistake that is typical of the family."""
    return row["rejected"]


def _other_answer(row: Row, rng: random.Random, pool: Sequence[Row]) -> str:
    """An answer to another prompt of the same family: plausible in kind, wrong here."""
    others = [other for other in rng.sample(pool, min(64, len(pool))) if other["datasource"] == row["datasource"]]
    wrong = next((other for other in others if other["reference"] != row["reference"]), None)
    return respond(_reasoning(row), wrong["reference"] if wrong else "")


def _no_reasoning(row: Row, rng: random.Random, pool: Sequence[Row]) -> str:
    return f"<answer>{row['reference']}</answer>"


def _off_topic(row: Row, rng: random.Random, pool: Sequence[Row]) -> str:
    """A whole response to a prompt of another family."""
    other = rng.choice(pool)
    while other["datasource"] == row["datasource"]:
        other = rng.choice(pool)
    return other["chosen"]


def _cut_off(row: Row, rng: random.Random, pool: Sequence[Row]) -> str:
    """Stops somewhere after the first quarter and before the closing tag."""
    response = row["chosen"].removesuffix("</answer>")
    return response[: rng.randint(len(response) // 4, len(response))]


def _repetitive(row: Row, rng: random.Random, pool: Sequence[Row]) -> str:
    """Says its reasoning, or its answer, two or three times over."""
    times = rng.randint(2, 3)
    if rng.random() < 0.5:
        return respond(" ".join([_reasoning(row)] * times), row["reference"])
    return respond(_reasoning(row), " ".join([row["reference"]] * times))


def _too_short(row: Row, rng: random.Random, pool: Sequence[Row]) -> str:
    """Half of the answer's words."""
    words = row["reference"].split()
    return respond(_reasoning(row), " ".join(words[: len(words) // 2]))


FLAWS: dict[str, Callable[[Row, random.Random, Sequence[Row]], str]] = {
    "mistaken": _mistaken,
    "wrong_answer": _other_answer,
    "no_reasoning": _no_reasoning,
    "off_topic": _off_topic,
    "cut_off": _cut_off,
    "repetitive": _repetitive,
    "too_short": _too_short,
}


def make_pair(row: Row, rng: random.Random, pool: Sequence[Row]) -> Pair:
    """The row's careful response against a flawed one, the flaw drawn uniformly.

    Args:
        row: a row of the bundled tasks.
        rng: decides the flaw and its details.
        pool: rows of more than one family that wrong answers and off-topic responses are taken from.
    """
    flaw = rng.choice(tuple(FLAWS))
    return Pair(row["prompt"], row["chosen"], FLAWS[flaw](row, rng, pool), flaw)
