"""Reward components: scores of single responses, their normalisation in a group, and the weighted sum.

Everything here works on plain strings and tensors. Two kinds of "no value" are kept apart throughout: ``-inf`` is the
response's own fault and becomes 0, ``NaN`` is a score that the scorer failed to give and takes no part.
"""

from openrlhf_maestro.rewards.components import (
    KINDS,
    Component,
    Features,
    RawSummary,
    make_component,
    normalize,
    score_components,
    summarize,
)
from openrlhf_maestro.rewards.length import length_reward
from openrlhf_maestro.rewards.ranking import group_rank
from openrlhf_maestro.rewards.scalar import scalarize
from openrlhf_maestro.rewards.teacher_forcing import TeacherForced, teacher_forced
from openrlhf_maestro.rewards.text import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    answer_text,
    format_reward,
    reasoning_end,
)

__all__ = [
    "ANSWER_CLOSE",
    "ANSWER_OPEN",
    "KINDS",
    "THINK_CLOSE",
    "THINK_OPEN",
    "Component",
    "Features",
    "RawSummary",
    "TeacherForced",
    "answer_text",
    "format_reward",
    "group_rank",
    "length_reward",
    "make_component",
    "normalize",
    "reasoning_end",
    "scalarize",
    "score_components",
    "summarize",
    "teacher_forced",
]
