"""A judge's replies: asked for side by side, each on disk at once, and never asked for again."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from openrlhf_maestro.config.verdicts import JudgeVerdictSection
from openrlhf_maestro.errors import DataError
from openrlhf_maestro.evaluation.log import AppendLog, Row, check_fields
from openrlhf_maestro.evaluation.verdicts import VoteCounts, Watch
from openrlhf_maestro.rewards.chat import ChatClient, Choice, api_key
from openrlhf_maestro.rewards.groups import Missing
from openrlhf_maestro.rewards.service import Service, excerpt

VOTES = "votes.jsonl"
OWNER = "the judge"
MEND = "Bring it back and give the same command again: the votes that are there are kept."

# What is read of a row; the verdict is True or False of one answer, a word of two.
_FIELDS = {
    "key": str,
    "vote": int,
    "order": str | None,
    "verdict": bool | str | None,
    "reply": str,
    "request": str,
}

# A key, the number of a vote, and the order in which two answers were shown.
Place = tuple[str, int, str | None]


@dataclass(frozen=True)
class Ballot:
    """One request to the judge."""

    key: str
    vote: int  # from 0
    order: str | None  # of two answers, see pairwise.py
    prompt: str  # its name
    request: dict[str, Any]  # arguments of the client library's call

    @property
    def place(self) -> Place:
        return self.key, self.vote, self.order


class Poll:
    """Asks a judge for votes and keeps them in votes.jsonl."""

    def __init__(
        self,
        section: JudgeVerdictSection,
        folder: Path,
        read: Callable[[str], Any],
        outcomes: Collection[bool | str],
        watch: Watch | None,
    ) -> None:
        """`read`: which of the `outcomes` a whole reply says, None where it says nothing that counts.

        Raises:
            ConfigError: the key's environment variable is not set or holds no key.
        """
        api_key(OWNER, section.api_key_env)
        self.section = section
        self.path = folder / VOTES
        self.counts = VoteCounts(0)
        self.missing_because = ""  # the last reason
        self._read = read
        self._outcomes = outcomes
        self._watch = watch

    def collect(self, ballots: Sequence[Ballot]) -> dict[Place, Row]:
        """The row of every ballot that has been answered, now or before.

        A vote counts as given before only if the whole request is the same: address, model, prompt, question,
        reference, answer, seed and sampling.

        Raises:
            RunError: the endpoint refuses a request or does not speak the protocol, has been down for too long
                (ServiceDown), or the file cannot be written.
            DataError: a line of the file is damaged.
        """
        with AppendLog(self.path) as log:
            check_fields(self.path, log.rows, _FIELDS, "vote")
            before = {(_place(row), row["request"]): (line, row) for line, row in enumerate(log.rows, 1)}
            found: dict[Place, Row] = {}
            open_: list[tuple[Ballot, str]] = []
            for ballot in ballots:
                request = self._hash(ballot)
                if (ballot.place, request) in before:
                    found[ballot.place] = self._checked(*before[ballot.place, request])
                else:
                    open_.append((ballot, request))
            unreadable = sum(row["verdict"] is None for row in found.values())
            self.counts = VoteCounts(len(ballots), reused=len(found), unreadable=unreadable)
            self._tell()
            if open_:
                asyncio.run(self._ask_all(open_, log, found))
        return found

    def _checked(self, line: int, row: Row) -> Row:
        if row["verdict"] is not None and row["verdict"] not in self._outcomes:
            raise DataError(
                f"{self.path}, line {line}: the verdict of this vote is {row['verdict']!r}, and can be "
                f"{', '.join(map(str, self._outcomes))} or null. Take the line out: the vote is asked for again."
            )
        return row

    async def _ask_all(self, ballots: Sequence[tuple[Ballot, str]], log: AppendLog, found: dict[Place, Row]) -> None:
        section = self.section
        client = ChatClient(OWNER, section.base_url, section.api_key_env, section.timeout_s)
        service = Service(OWNER, section, owner=OWNER, mend=MEND)
        waiting = iter(ballots)  # one for all workers: each takes the next
        workers = [
            asyncio.create_task(self._work(waiting, client, service, log, found))
            for _ in range(min(section.concurrency, len(ballots)))
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await client.close()

    async def _work(
        self,
        ballots: Iterator[tuple[Ballot, str]],
        client: ChatClient,
        service: Service,
        log: AppendLog,
        found: dict[Place, Row],
    ) -> None:
        for ballot, request in ballots:
            reply = await service.call(partial(client.ask, ballot.request))
            if isinstance(reply, Missing):
                self.counts.missing += 1
                self.missing_because = reply.reason
            else:
                row = self._row(ballot, request, reply)
                log.append(row)
                found[ballot.place] = row
                self.counts.asked += 1
                self.counts.unreadable += row["verdict"] is None
            self._tell()

    def _row(self, ballot: Ballot, request: str, reply: Choice) -> Row:
        return {
            "key": ballot.key,
            "vote": ballot.vote,
            "order": ballot.order,
            "seed": ballot.request.get("seed"),
            # The beginning of "True, if one grants that..." is no True.
            "verdict": None if reply.is_cut else self._read(reply.text),
            "reply": excerpt(reply.text),
            "finish_reason": reply.finish_reason,
            "model": self.section.model,
            "prompt": ballot.prompt,
            "request": request,
        }

    def _hash(self, ballot: Ballot) -> str:
        text = json.dumps([self.section.base_url, ballot.request], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _tell(self) -> None:
        if self._watch is not None:
            self._watch(self.counts)


def vote_seed(seed: int | None, key: str, vote: int) -> int | None:
    """A 31-bit seed that another vote hardly ever shares; None where judge.seed is.

    It does not depend on the response: two models that give the same answer to the same question get the same votes
    from a judge that follows the seed.
    """
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}|vote|{vote}|{key}".encode("utf-8", "backslashreplace"), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def request_of(section: JudgeVerdictSection, messages: list[dict[str, str]], seed: int | None) -> dict[str, Any]:
    """The arguments of the call."""
    sampling = {"seed": seed, "temperature": section.temperature, "max_tokens": section.max_tokens}
    return {"model": section.model, "messages": messages, "extra_body": section.extra_body} | {
        name: value for name, value in sampling.items() if value is not None
    }


def _place(row: Row) -> Place:
    return row["key"], row["vote"], row["order"]
