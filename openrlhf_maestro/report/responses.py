"""Which responses the page shows: of each data set's newest group, the one whose rewards differ most."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from openrlhf_maestro.report.embed import visible
from openrlhf_maestro.report.rollouts import Rollout
from openrlhf_maestro.report.run import Run

# Rollout files looked through for data sets that the last step happened not to draw.
STEPS_BACK = 4
MAX_DATASOURCES = 8
MAX_CHARACTERS = 6000

TAG = re.compile(r"(</?(?:think|answer)>)")


@dataclass(frozen=True)
class Group:
    """The responses to one prompt at one step, highest scalar reward first."""

    step: int
    datasource: str
    prompt: str
    reference: str | None
    responses: list[Rollout]

    @property
    def spread(self) -> float:
        """Highest minus lowest scalar reward; 0 where none is known."""
        known = [response.scalar_reward for response in self.responses if not math.isnan(response.scalar_reward)]
        return max(known) - min(known) if known else 0.0


def sample_groups(run: Run) -> list[Group]:
    """One group a data set, from the newest of the last steps that drew it; sorted by data set."""
    chosen: dict[str, Group] = {}
    for step in sorted(run.rollout_files, reverse=True)[:STEPS_BACK]:
        newest: dict[str, Group] = {}
        for group in _groups(run.rollouts(step)):
            best = newest.get(group.datasource)
            if best is None or group.spread > best.spread:
                newest[group.datasource] = group
        chosen = newest | chosen
    return [chosen[name] for name in sorted(chosen)][:MAX_DATASOURCES]


def _groups(responses: list[Rollout]) -> list[Group]:
    by_group: dict[int, list[Rollout]] = {}
    for response in responses:
        by_group.setdefault(response.group, []).append(response)
    return [
        Group(members[0].step, members[0].datasource, members[0].prompt, members[0].reference, _ranked(members))
        for members in by_group.values()
    ]


def _ranked(members: list[Rollout]) -> list[Rollout]:
    def reward(member: Rollout) -> float:
        return -math.inf if math.isnan(member.scalar_reward) else member.scalar_reward

    return sorted(members, key=reward, reverse=True)


def segments(text: str) -> list[tuple[str, bool]]:
    """Text split at its reasoning and answer tags, as (piece, is a tag); control characters shown, long text cut."""
    shown = visible(text, MAX_CHARACTERS)
    return [(piece, TAG.fullmatch(piece) is not None) for piece in TAG.split(shown) if piece]
