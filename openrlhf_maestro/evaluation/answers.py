"""The part of a response that is judged."""

from __future__ import annotations

_THINK_CLOSE = "</think>"
_ANSWER_OPEN, _ANSWER_CLOSE = "<answer>", "</answer>"


def answer_segment(response: str) -> str:
    """The text in the last `<answer>...</answer>`; else what follows the last `</think>`; else all of it.

    White space around it is removed. Other than the `format` reward this asks for no form: models that were never
    trained on one are evaluated too.
    """
    end = response.rfind(_ANSWER_CLOSE)
    start = response.rfind(_ANSWER_OPEN, 0, max(end, 0))
    if start >= 0:
        start += len(_ANSWER_OPEN)
        return response[start : response.index(_ANSWER_CLOSE, start)].strip()
    return response.rpartition(_THINK_CLOSE)[2].strip()
