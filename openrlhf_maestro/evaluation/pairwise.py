"""Verdicts by comparison: which of two models answers better? Each vote asks in both orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openrlhf_maestro.config.verdicts import JudgeVerdictSection
from openrlhf_maestro.errors import DataError
from openrlhf_maestro.evaluation.answers import answer_segment
from openrlhf_maestro.evaluation.judge import check_keys
from openrlhf_maestro.evaluation.log import Row
from openrlhf_maestro.evaluation.prompts import load_instructions
from openrlhf_maestro.evaluation.verdicts import Item, Verdict, VoteCounts, Watch
from openrlhf_maestro.evaluation.votes import Ballot, Place, Poll, request_of, vote_seed
from openrlhf_maestro.rewards.chat import chat_messages

_REPLY = "Reply with one word, First, Second or Tie, and with nothing else."
_TASK = "Which answer is better, the First or the Second, or is it a Tie? Reply with one word and with nothing else."

# The words of a reply, and which answer each means in either order: ours 1, theirs -1.
FIRST, SECOND, TIE = "first", "second", "tie"
OURS_FIRST, THEIRS_FIRST = "ours first", "theirs first"
_SIGN = {OURS_FIRST: {FIRST: 1, SECOND: -1, TIE: 0}, THEIRS_FIRST: {FIRST: -1, SECOND: 1, TIE: 0}}

_SCORES = {1: 1.0, 0: 0.5, -1: 0.0}
_RIGHT = {1: True, 0: None, -1: False}


@dataclass(frozen=True)
class PositionBias:
    """What the order did. 0 and 0.5 where it did nothing."""

    pairs: int  # votes of which both orders could be read
    inconsistent: int  # of them, where the two orders disagree
    first: int  # replies for the answer that was shown first
    second: int

    @property
    def inconsistent_share(self) -> float | None:
        return self.inconsistent / self.pairs if self.pairs else None

    @property
    def first_share(self) -> float | None:
        decided = self.first + self.second
        return self.first / decided if decided else None


class PairwiseVerdicts:
    """Compares each response with the other model's to the same prompt."""

    def __init__(
        self, section: JudgeVerdictSection, folder: Path, others: Mapping[str, str], *, watch: Watch | None = None
    ) -> None:
        """Connects to nothing yet. `others`: the other model's whole responses by key.

        Raises:
            ConfigError: the key's environment variable is not set, or a prompt does not exist.
        """
        self.section = section
        self.others = others
        self.bias = PositionBias(0, 0, 0, 0)
        self._poll = Poll(section, folder, parse_choice, (FIRST, SECOND, TIE), watch)
        self._instructions = {source: load_instructions(section.prompt_for(source)) for source in section.by_datasource}
        self._general = load_instructions(section.prompt)

    @property
    def counts(self) -> VoteCounts:
        """Of the last call."""
        return self._poll.counts

    def __call__(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item, in their order: `score` 1 better, 0 worse, 0.5 a tie, where `right` is None.

        Equal answers are a tie, and an empty one is the worse, unasked. A vote has three outcomes, so `votes` stays
        empty: they are in votes.jsonl.

        Raises:
            DataError: the other model has no response for an item.
            RunError: see `Poll.collect`.
        """
        check_keys(items)
        pairs = [(answer_segment(item.response), answer_segment(self._other(item))) for item in items]
        ballots = [
            ballot
            for item, (ours, theirs) in zip(items, pairs, strict=True)
            if _unasked(ours, theirs) is None
            for ballot in self._ballots(item, ours, theirs)
        ]
        rows = self._poll.collect(ballots)
        self.bias = position_bias(rows)
        return [
            self._verdict(item, rows) if (known := _unasked(ours, theirs)) is None else _decided(known)
            for item, (ours, theirs) in zip(items, pairs, strict=True)
        ]

    def _other(self, item: Item) -> str:
        if item.key not in self.others:
            raise DataError(
                f"the evaluation to compare with has no response for {item.key}. Evaluate the other model on the same "
                "rows, with as many samples."
            )
        return self.others[item.key]

    def _ballots(self, item: Item, ours: str, theirs: str) -> list[Ballot]:
        instructions = self._instructions.get(item.datasource, self._general)
        given = {"question": item.question} | ({} if item.reference is None else {"reference answer": item.reference})
        shown = {OURS_FIRST: (ours, theirs), THEIRS_FIRST: (theirs, ours)}
        ballots = []
        for order, (first, second) in shown.items():
            parts = given | {"first answer": first, "second answer": second}
            messages = chat_messages(instructions.pair, parts, product="a verdict", reply=_REPLY, task=_TASK)
            for vote in range(self.section.votes):
                seed = vote_seed(self.section.seed, item.key, vote)
                request = request_of(self.section, messages, seed)
                ballots.append(Ballot(item.key, vote, order, instructions.name, request))
        return ballots

    def _verdict(self, item: Item, rows: Mapping[Place, Row]) -> Verdict:
        votes = [_vote(item.key, vote, rows) for vote in range(self.section.votes)]
        read = [vote for vote in votes if vote is not None]
        if not read:
            reasons = {row["reply"] for place, row in rows.items() if place[0] == item.key and row["verdict"] is None}
            said = f": {min(reasons)!r}" if reasons else f": {self._poll.missing_because}"
            return Verdict(None, None, (), f"no vote has a reply that could be read in both orders{said}")
        return _decided(next((side for side in (1, -1) if read.count(side) * 2 > len(read)), 0))


def parse_choice(reply: str) -> str | None:
    """ "first", "second" or "tie" where that word is the whole reply, as `parse_vote` reads one; else None."""
    word = reply.strip().lower()
    return next((choice for choice in (FIRST, SECOND, TIE) if word in (choice, f"{choice}.")), None)


def position_bias(rows: Mapping[Place, Row]) -> PositionBias:
    """Of all votes, by key, vote and order."""
    both = [
        (row["verdict"], rows[other]["verdict"])
        for (key, vote, order), row in rows.items()
        if order == OURS_FIRST and (other := (key, vote, THEIRS_FIRST)) in rows
    ]
    read = [(a, b) for a, b in both if a is not None and b is not None]
    verdicts = [row["verdict"] for row in rows.values()]
    return PositionBias(
        pairs=len(read),
        inconsistent=sum(_SIGN[OURS_FIRST][a] != _SIGN[THEIRS_FIRST][b] for a, b in read),
        first=verdicts.count(FIRST),
        second=verdicts.count(SECOND),
    )


def _vote(key: str, vote: int, rows: Mapping[Place, Row]) -> int | None:
    """1, -1, or 0 where the orders disagree or both say tie; None where one of them has no reply that could be read."""
    signs = []
    for order, sign in _SIGN.items():
        row = rows.get((key, vote, order))
        if row is None or row["verdict"] is None:
            return None
        signs.append(sign[row["verdict"]])
    return signs[0] if signs[0] == signs[1] else 0


def _unasked(ours: str, theirs: str) -> int | None:
    """The outcome that needs no judge; None where there is none."""
    if ours == theirs:
        return 0
    if not ours or not theirs:
        return 1 if ours else -1
    return None


def _decided(side: int) -> Verdict:
    return Verdict(_RIGHT[side], _SCORES[side])
