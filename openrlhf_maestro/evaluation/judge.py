"""Verdicts by a language model: does the answer hold against the reference? Several votes, the majority decides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openrlhf_maestro.config.verdicts import JudgeVerdictSection
from openrlhf_maestro.errors import DataError
from openrlhf_maestro.evaluation.answers import answer_segment
from openrlhf_maestro.evaluation.log import Row
from openrlhf_maestro.evaluation.prompts import Instructions, load_instructions
from openrlhf_maestro.evaluation.verdicts import Item, Verdict, VoteCounts, Watch
from openrlhf_maestro.evaluation.votes import Ballot, Place, Poll, request_of, vote_seed
from openrlhf_maestro.rewards.chat import chat_messages

_REPLY = "Reply with one word, True or False, and with nothing else."
_TASK = "Is the answer True or False? Reply with one word and with nothing else."

_WORDS = {"true": True, "true.": True, "false": False, "false.": False}


class JudgeVerdicts:
    """Asks for every vote on every response; an empty answer is wrong unasked."""

    def __init__(self, section: JudgeVerdictSection, folder: Path, *, watch: Watch | None = None) -> None:
        """Connects to nothing yet. `folder`: where votes.jsonl goes.

        Raises:
            ConfigError: the key's environment variable is not set, or a prompt does not exist.
        """
        self.section = section
        self._poll = Poll(section, folder, parse_vote, (True, False), watch)
        self._instructions = {source: load_instructions(section.prompt_for(source)) for source in section.by_datasource}
        self._general = load_instructions(section.prompt)

    @property
    def counts(self) -> VoteCounts:
        """Of the last call."""
        return self._poll.counts

    def __call__(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item, in their order, without a score; the votes are those that were given.

        Raises:
            DataError: an item has no reference answer.
            RunError: see `Poll.collect`.
        """
        check_keys(items)
        answers = [answer_segment(item.response) for item in items]
        ballots = [
            ballot
            for item, answer in zip(items, answers, strict=True)
            if answer
            for ballot in self._ballots(item, answer)
        ]
        rows = self._poll.collect(ballots)
        return [
            self._verdict(item, rows) if answer else Verdict(False, None)
            for item, answer in zip(items, answers, strict=True)
        ]

    def _ballots(self, item: Item, answer: str) -> list[Ballot]:
        if item.reference is None:
            raise DataError(
                f"the judge compares with the reference answer, and the row of {item.key} ({item.datasource}) has "
                "none. Mend the row, or leave it out."
            )
        instructions = self.instructions_for(item.datasource)
        parts = {"question": item.question, "reference answer": item.reference, "answer": answer}
        messages = chat_messages(instructions.single, parts, product="a verdict", reply=_REPLY, task=_TASK)
        return [
            Ballot(
                item.key,
                vote,
                None,
                instructions.name,
                request_of(self.section, messages, vote_seed(self.section.seed, item.key, vote)),
            )
            for vote in range(self.section.votes)
        ]

    def instructions_for(self, datasource: str) -> Instructions:
        return self._instructions.get(datasource, self._general)

    def _verdict(self, item: Item, rows: dict[Place, Row]) -> Verdict:
        given = [rows[place] for vote in range(self.section.votes) if (place := (item.key, vote, None)) in rows]
        votes = tuple(row["verdict"] for row in given)
        right = majority(votes)
        if right is not None:
            return Verdict(right, None, votes)
        return Verdict(None, None, votes, self._problem(given))

    def _problem(self, given: Sequence[Row]) -> str:
        reasons = []
        if len(given) < self.section.votes:
            missing = self.section.votes - len(given)
            reasons.append(f"{missing} of {self.section.votes} votes are missing: {self._poll.missing_because}")
        unreadable = [row["reply"] for row in given if row["verdict"] is None]
        if unreadable:
            reasons.append(f"{len(unreadable)} of {len(given)} replies are neither True nor False: {unreadable[0]!r}")
        if len(unreadable) < len(given):
            reasons.append("the others are split evenly")
        return "; ".join(reasons)


def parse_vote(reply: str) -> bool | None:
    """True or False where that word is the whole reply, in any case and with or without a full stop; else None."""
    return _WORDS.get(reply.strip().lower())


def majority(votes: Sequence[bool | None]) -> bool | None:
    """What most of the votes that could be read say; None where they are split evenly, or there are none."""
    balance = votes.count(True) - votes.count(False)
    return None if balance == 0 else balance > 0


def check_keys(items: Sequence[Item]) -> None:
    """Raises ValueError where two items have one key: they would be given each other's votes."""
    if len({item.key for item in items}) != len(items):
        raise ValueError("two items have the same key")
