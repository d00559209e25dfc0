"""The part of a response that is judged."""

from __future__ import annotations

_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"
_ANSWER_OPEN, _ANSWER_CLOSE = "<answer>", "</answer>"


def answer_segment(response: str) -> str:
    """The answer, without white space around it; empty where the reasoning never ends.

    What follows the last `</think>` counts, so that tags quoted in the reasoning do not. In it the answer is what
    follows the last `<answer>`, up to `</answer>` or, cut, the end; without `<answer>` all of it. Other than the
    `format` reward this asks for no form: models that were never trained on one are evaluated too.
    """
    said = response.rpartition(_THINK_CLOSE)[2].strip()
    if said.startswith(_THINK_OPEN):
        return ""
    _, opened, answer = said.rpartition(_ANSWER_OPEN)
    return answer.partition(_ANSWER_CLOSE)[0].strip() if opened else said
