"""A reward from a web service of yours, asked for all responses of a group at once.

The service gets {"question": ..., "answer": ...} and answers {"score": 0.7}. Its address is in GRADER_URL.

    rewards:
      components:
        - {kind: callable, name: grader, function: examples/rewards/over_http.py:grade, timeout_s: 60}
"""

import asyncio
import os

import httpx

from openrlhf_maestro.rewards import FAULT, answer_text

AT_A_TIME = asyncio.Semaphore(16)  # of the whole run: every group calls `grade` for itself


async def grade(prompts: list[str], responses: list[str]) -> list[float | None]:
    """The service's score of each answer; a response without an answer is at fault."""
    async with httpx.AsyncClient() as client:
        pairs = zip(prompts, responses, strict=True)
        return await asyncio.gather(*(_score(client, prompt, answer_text(response)) for prompt, response in pairs))


async def _score(client: httpx.AsyncClient, prompt: str, answer: str | None) -> float | None:
    if answer is None:
        return FAULT
    async with AT_A_TIME:
        try:
            reply = await client.post(os.environ["GRADER_URL"], json={"question": prompt, "answer": answer})
        except httpx.TransportError:
            return None  # missing: the other components decide about this response
    # Anything else than a score is a mistake of ours or the service's, and stops the run.
    return float(reply.raise_for_status().json()["score"])
