"""Component `judge`: a language model rates the answer segment, over an OpenAI-compatible API (paper, appendix F)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from openrlhf_maestro.config.components import JudgeComponent
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rewards.chat import ChatClient, chat_messages
from openrlhf_maestro.rewards.groups import FAULT, Group, GroupScorer, Missing, Score
from openrlhf_maestro.rewards.judge_cache import ScoreCache
from openrlhf_maestro.rewards.service import Service, excerpt
from openrlhf_maestro.rewards.text import answer_text

# No sign, exponent, percent or fraction. "0." and "1." may be the beginnings of longer numbers that were cut.
_NUMBER = re.compile(r"0|1|1\.0+|0?\.[0-9]+")

_REPLY = "Reply with one number between 0 (worst) and 1 (best), such as 0.7, and with nothing else."
_TASK = "Rate the answer. Reply with one number between 0 and 1 and with nothing else."


class JudgeScorer(GroupScorer):
    """Asks a judge about each different answer of a group; responses that break the format are at fault, unasked."""

    def __init__(self, section: JudgeComponent, *, cache: Path | None) -> None:
        """Connects to nothing yet. `cache`: the file that remembers scores, None for none.

        Raises:
            ConfigError: the key's environment variable is not set or holds no key, or the cache cannot be used.
        """
        self.section = section
        self._service = Service(section.label, section)
        self._client = ChatClient(
            f"reward component {section.label}", section.base_url, section.api_key_env, section.timeout_s
        )
        self._cache = None if cache is None else ScoreCache(cache)

    async def score(self, group: Group) -> Sequence[Score]:
        """(G,) ratings between 0 and 1, higher is better.

        -inf for a response out of format or with an empty answer; Missing where the judge cannot be reached or its
        reply is cut or not a number. Equal answers are rated once.

        Raises:
            RunError: the endpoint refuses the request or does not speak the protocol, has been down for too long
                (ServiceDown), the cache fails, or there is no reference to show.
        """
        answers = [(answer_text(response) or "").strip() for response in group.responses]
        ratings = {
            answer: asyncio.create_task(self._rate(self._request(group, answer)))
            for answer in dict.fromkeys(answers)
            if answer
        }
        try:
            await asyncio.gather(*ratings.values())
        finally:
            for rating in ratings.values():
                rating.cancel()  # the others of the group, where one has failed for good
        return [ratings[answer].result() if answer else FAULT for answer in answers]

    async def close(self) -> None:
        await self._client.close()
        if self._cache is not None:
            self._cache.close()

    def _request(self, group: Group, answer: str) -> dict[str, Any]:
        """The arguments of the call: they determine the reply, as far as anything does."""
        section = self.section
        if section.with_reference and group.reference is None:
            raise RunError(
                f"reward component {section.label} shows the judge the reference answer, and a prompt of "
                f"{group.datasource} has none. Give references, or set its with_reference to false."
            )
        sampling = {"temperature": section.temperature, "max_tokens": section.max_tokens}
        return {
            "model": section.model,
            "messages": judge_messages(
                section.parameter("prompt", group.datasource),
                question=group.prompt,
                reference=group.reference if section.with_reference else None,
                answer=answer,
            ),
            "extra_body": section.extra_body,
        } | {name: value for name, value in sampling.items() if value is not None}

    async def _rate(self, request: dict[str, Any]) -> Score:
        key = hashlib.sha256(json.dumps([self.section.base_url, request], sort_keys=True).encode()).hexdigest()
        if self._cache is not None and (known := self._cache.get(key)) is not None:
            return known
        reply = await self._service.call(partial(self._client.ask, request))
        if isinstance(reply, Missing):
            return reply
        text = reply.text
        if reply.is_cut:  # "1" may be the beginning of "10 out of 100"
            return Missing(f"the judge's reply is cut (finish_reason {reply.finish_reason}): {excerpt(text)!r}")
        score = parse_score(text)
        if score is None:
            return Missing(f"the judge's reply is not a number between 0 and 1: {excerpt(text)!r}")
        if self._cache is not None:
            self._cache.put(key, score)
        return score


def judge_messages(prompt: str, *, question: str, reference: str | None, answer: str) -> list[dict[str, str]]:
    """What a judge is shown: the prompt and the rules, then the parts between lines with a code (`chat_messages`)."""
    parts = {"question": question, "reference answer": reference, "answer": answer}
    given = {name: text for name, text in parts.items() if text is not None}
    return chat_messages(prompt, given, product="a rating", reply=_REPLY, task=_TASK)


def parse_score(reply: str) -> float | None:
    """The number that a reply consists of, white space around it aside; None where it is anything else.

    A number is 0, 1, 1.0, or a decimal fraction such as 0.7 or .7; nothing may stand before or after it.
    """
    text = reply.strip()
    return float(text) if _NUMBER.fullmatch(text) else None
