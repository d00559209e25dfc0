"""Reward components: scores of single responses, their normalisation in a group, and the weighted sum.

Everything here works on plain strings and tensors. Two kinds of "no value" are kept apart throughout: ``-inf`` is the
response's own fault and becomes 0, ``NaN`` is a score that the scorer failed to give and takes no part.
"""

from openrlhf_maestro.rewards.components import (
    KINDS,
    Component,
    Context,
    RawSummary,
    apply_gates,
    make_components,
    normalize,
    summarize,
)
from openrlhf_maestro.rewards.groups import FAULT, Group, GroupScorer, Missing, Score
from openrlhf_maestro.rewards.length import length_reward
from openrlhf_maestro.rewards.measured import Features, MeasuredScorer
from openrlhf_maestro.rewards.ranking import group_rank
from openrlhf_maestro.rewards.scalar import scalarize
from openrlhf_maestro.rewards.teacher_forcing import ReferenceBranch, TeacherForced, teacher_forced
from openrlhf_maestro.rewards.text import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    answer_text,
    format_reward,
    reasoning_end,
)
from openrlhf_maestro.rewards.trial import try_component

__all__ = [
    "ANSWER_CLOSE",
    "ANSWER_OPEN",
    "FAULT",
    "KINDS",
    "THINK_CLOSE",
    "THINK_OPEN",
    "Component",
    "Context",
    "Features",
    "Group",
    "GroupScorer",
    "MeasuredScorer",
    "Missing",
    "RawSummary",
    "ReferenceBranch",
    "Score",
    "TeacherForced",
    "answer_text",
    "apply_gates",
    "format_reward",
    "group_rank",
    "length_reward",
    "make_components",
    "normalize",
    "reasoning_end",
    "scalarize",
    "summarize",
    "teacher_forced",
    "try_component",
]
