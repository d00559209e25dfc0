"""What goes over the wire between a run and its remote scorers, in both protocols and both directions.

`maestro`: groups in, for each response a vector of scores out. A score is a number, `null` where the scorer has no
value, or `"fault"` where the response itself is at fault: JSON has no infinity.
`openrlhf`: the single-reward protocol of OpenRLHF 0.11.2's `serve_rm`: texts in, a list of rewards out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from openrlhf_maestro.rewards.groups import FAULT, Group, Missing, Score, no_value
from openrlhf_maestro.rewards.service import excerpt

FAULT_WORD = "fault"


class ProtocolError(ValueError):
    """An answer that is not what the protocol says."""


# ── requests, as a client writes them ──


def score_request(group: Group, components: Sequence[str]) -> bytes:
    """The body that asks a `maestro` server for `components` of a group."""
    return _dump({"components": list(components), "groups": [vars(group)]})


def reward_request(group: Group) -> bytes:
    """The body that OpenRLHF sends, with all the responses of a group in one."""
    return _dump(
        {
            "query": group.queries,
            "prompts": [group.rendered_prompt] * len(group),
            "labels": [group.reference or ""] * len(group),
        }
    )


def _dump(value: Any) -> bytes:
    return json.dumps(_plain(value), allow_nan=False).encode()


def _plain(value: Any) -> Any:
    """A value JSON has a form for: no number becomes null, what it does not know (a date) becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


# ── requests, as the server reads them ──


class GroupBody(BaseModel):
    """A group in a request. What only some components read may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    responses: list[str] = Field(min_length=1)
    rendered_prompt: str | None = None
    queries: list[str] | None = None
    token_ids: list[list[int]] | None = None
    truncated: list[bool] | None = None
    reference: str | None = None
    datasource: str = "default"
    messages: list[dict[str, str]] = []
    metadata: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_a_response(self) -> GroupBody:
        for name in ("queries", "token_ids", "truncated"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.responses):
                raise ValueError(f"{len(values)} {name} for {len(self.responses)} responses")
        return self

    def group(self) -> Group:
        """With what was left out made from the rest; token ids, of which there is nothing to make, are empty."""
        rendered = self.prompt if self.rendered_prompt is None else self.rendered_prompt
        return Group(
            prompt=self.prompt,
            rendered_prompt=rendered,
            queries=[rendered + text for text in self.responses] if self.queries is None else self.queries,
            responses=self.responses,
            token_ids=[[] for _ in self.responses] if self.token_ids is None else self.token_ids,
            truncated=[False] * len(self.responses) if self.truncated is None else self.truncated,
            reference=self.reference,
            datasource=self.datasource,
            messages=self.messages or ({"role": "user", "content": self.prompt},),
            metadata=self.metadata,
        )


class ScoreRequest(BaseModel):
    """The body of POST /score."""

    model_config = ConfigDict(extra="forbid", strict=True)

    groups: list[GroupBody]
    components: list[str] | None = None  # None: all that are served


class RewardRequest(BaseModel):
    """The body of POST /get_reward, one value a response in each list."""

    model_config = ConfigDict(strict=True)

    query: list[str]  # rendered prompt, response and stop token
    prompts: list[str]  # rendered
    labels: list[Any]

    @model_validator(mode="after")
    def _as_many_of_each(self) -> RewardRequest:
        if not len(self.query) == len(self.prompts) == len(self.labels):
            raise ValueError(f"{len(self.query)} query, {len(self.prompts)} prompts, {len(self.labels)} labels")
        return self


# ── answers, as the server writes them ──


def group_answer(columns: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    """The scores of a group by component -> a vector a response, and why the first missing value of each is missing."""
    reasons = {name: next(filter(None, map(no_value, column)), None) for name, column in columns.items()}
    return {
        "scores": [[_written(score) for score in row] for row in zip(*columns.values(), strict=True)],
        "reasons": {name: reason for name, reason in reasons.items() if reason is not None},
    }


def _written(score: Score) -> float | str | None:
    if isinstance(score, Missing) or no_value(score) is not None:
        return None
    return FAULT_WORD if score == FAULT else float(score)


# ── answers, as a client reads them ──


def read_scores(text: str, components: Sequence[str], size: int) -> dict[str, list[Score]]:
    """The (G,) scores of each component in a `maestro` server's answer for one group of `size` responses.

    Raises:
        ProtocolError: it is no such answer: no JSON, other components, a wrong count, something that is no score.
    """
    answer = _object(text)
    if answer.get("components") != list(components):
        raise ProtocolError(f"its components are not {', '.join(components)}")
    groups = answer.get("groups")
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], dict):
        raise ProtocolError("it does not hold one group")
    rows, reasons = groups[0].get("scores"), groups[0].get("reasons", {})
    table = [_list_of(row, len(components), "components") for row in _list_of(rows, size, "scores")]
    if not isinstance(reasons, dict):
        raise ProtocolError("its reasons are not a mapping")
    return {
        name: [_read(row[k], excerpt(str(reasons.get(name, "the server has no value")))) for row in table]
        for k, name in enumerate(components)
    }


def read_rewards(text: str, size: int) -> list[Score]:
    """The (G,) `rewards` of a server of OpenRLHF's protocol. One that is not finite is missing.

    Raises:
        ProtocolError: it is no such answer.
    """
    values = [_number(value) for value in _list_of(_object(text).get("rewards"), size, "rewards")]
    return [value if math.isfinite(value) else Missing(f"its reward is {value}") for value in values]


def _object(text: str) -> dict[str, Any]:
    try:
        # Every number as a float: a whole number of any length is then no error, but infinite.
        answer = json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        raise ProtocolError("it is not JSON") from None
    if not isinstance(answer, dict):
        raise ProtocolError("it is not a JSON object")
    return answer


def _list_of(values: Any, size: int, name: str) -> list[Any]:
    if not isinstance(values, list) or len(values) != size:
        found = len(values) if isinstance(values, list) else "no list of"
        raise ProtocolError(f"it holds {found} {name} where {size} were expected")
    return values


def _read(value: Any, reason: str) -> Score:
    if value is None:
        return Missing(reason)
    if value == FAULT_WORD:
        return FAULT
    number = _number(value)
    return number if math.isfinite(number) else Missing(f"its value is {number}")


def _number(value: Any) -> float:
    if not isinstance(value, float):
        raise ProtocolError(f"{json.dumps(value)[:40]} is not a number")
    return value
