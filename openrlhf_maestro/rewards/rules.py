"""Components that are computed from the text alone: format, length, rule, match."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openrlhf_maestro.config.components import LengthComponent, MatchComponent
from openrlhf_maestro.data.tasks import check
from openrlhf_maestro.rewards.groups import FAULT, Group, Missing, Score
from openrlhf_maestro.rewards.length import length_reward
from openrlhf_maestro.rewards.text import answer_text, format_reward


class RuleScorer:
    """A plain function of a group as a GroupScorer."""

    def __init__(self, function: Callable[[Group], Sequence[Score]]) -> None:
        self.function = function

    async def score(self, group: Group) -> Sequence[Score]:
        return self.function(group)

    async def close(self) -> None:
        """Nothing is held."""


def format_scores(group: Group) -> list[Score]:
    return [format_reward(text) for text in group.responses]


def length_scores(section: LengthComponent, max_new_tokens: int) -> Callable[[Group], list[Score]]:
    """The `length` reward with the limits of the group's data source. An empty response is at fault."""

    def scores(group: Group) -> list[Score]:
        limits = section.limits(group.datasource, max_new_tokens)
        return [
            length_reward(len(ids), *limits) if text.strip() else FAULT
            for ids, text in zip(group.token_ids, group.responses, strict=True)
        ]

    return scores


def match_scores(section: MatchComponent) -> Callable[[Group], list[Score]]:
    """1 where the answer is the label. A response without an answer is at fault; without a label nothing is known."""

    def scores(group: Group) -> list[Score]:
        label = section.label_of(group.reference, group.metadata)
        if not label:
            return [Missing(f"a row has no {section.column or 'reference'}")] * len(group)
        answers = [answer_text(text) for text in group.responses]
        wanted = _folded(label)
        return [FAULT if answer is None else float(_folded(answer) == wanted) for answer in answers]

    return scores


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def verdict_scores(group: Group) -> list[Score]:
    """1 where the bundled task's rule says that the response is right, else 0."""
    reference = group.reference or ""
    return [float(check(group.datasource, group.prompt, reference, text)) for text in group.responses]
