"""What a scorer gets and gives: the responses to one prompt, and a value or a reason for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

# The raw value of a response that is itself at fault.
FAULT = float("-inf")


@dataclass(frozen=True)
class Group:
    """The G responses to one prompt."""

    prompt: str  # as written in the data set, before a chat template
    rendered_prompt: str  # as the policy reads it, special tokens included
    queries: Sequence[str]  # (G,) rendered prompt, response and stop token, decoded in one go
    responses: Sequence[str]  # (G,) without the stop token
    token_ids: Sequence[Sequence[int]]  # (G,) of the responses, with the stop token where it stopped by itself
    truncated: Sequence[bool]  # (G,) cut at the length limit
    reference: str | None = None
    datasource: str = "default"
    messages: Sequence[Mapping[str, str]] = ()  # the prompt as chat messages
    metadata: Mapping[str, Any] = field(default_factory=dict)  # the row's other columns

    def __len__(self) -> int:
        return len(self.responses)


@dataclass(frozen=True)
class Missing:
    """No value, by the scorer's fault."""

    reason: str  # one line, for the warning and the error


# -inf (FAULT) is the response's fault; any other number that is not finite counts as missing.
Score = float | Missing


def no_value(score: Score) -> str | None:
    """Why a score is missing; None where it is not."""
    if isinstance(score, Missing):
        return score.reason
    return None if math.isfinite(score) or score == FAULT else f"its value is {score}"


class GroupScorer(Protocol):
    """Scores responses from their text: it runs while other groups are still being sampled."""

    async def score(self, group: Group) -> Sequence[Score]:
        """(G,) one score a response.

        Raises:
            RunError: for a failure that no retry mends (a refused request, a bug in a function); the run stops.
        """

    async def close(self) -> None:
        """Give connections and files back."""
