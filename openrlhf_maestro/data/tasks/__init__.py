"""Bundled tasks: families of prompts that mirror the paper's categories, with a rule that judges every response.

`check` needs nothing but text, so that rows written to disk can be judged later and elsewhere.
"""

from __future__ import annotations

from openrlhf_maestro.data.tasks.beliefs import FALSE_BELIEF
from openrlhf_maestro.data.tasks.comparing import COMPARING
from openrlhf_maestro.data.tasks.counting import COUNTING
from openrlhf_maestro.data.tasks.family import Example, Family, answer_of, respond
from openrlhf_maestro.data.tasks.stories import CREATIVE
from openrlhf_maestro.data.tasks.translation import TRANSLATION

__all__ = ["FAMILIES", "Example", "Family", "answer_of", "check", "respond"]

FAMILIES: dict[str, Family] = {
    family.name: family for family in (COUNTING, COMPARING, CREATIVE, FALSE_BELIEF, TRANSLATION)
}


def check(datasource: str, prompt: str, reference: str, response: str) -> bool:
    """Whether a response to a bundled prompt is right.

    Args:
        datasource: the family's name.
        prompt: the text the policy was asked, without chat template.
        reference: the row's reference answer.
        response: the whole response text, tags included. One that breaks the format is wrong.

    Raises:
        ValueError: the family does not exist, or the prompt is not one of its prompts.
    """
    if datasource not in FAMILIES:
        raise ValueError(f"no rule for datasource {datasource!r}; the bundled families are {', '.join(FAMILIES)}")
    answer = answer_of(response)
    return answer is not None and FAMILIES[datasource].is_right(prompt, reference, answer)
