"""The two segments of a response, ``<think>...</think>`` and ``<answer>...</answer>``, and the ``format`` reward."""

import re

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

_TAG = re.compile("|".join((THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)))


def format_reward(text: str) -> float:
    """The paper's ``format`` component [B].

    Args:
        text: a whole response, without special tokens such as the end-of-sequence token.

    Returns:
        1.0 if the response is exactly one reasoning segment followed by exactly one answer segment, with nothing but
        white space before, between and after them, else 0.0. The content of a segment may be anything, empty too,
        except another of the four tags: nested, duplicate, unclosed and swapped tags all give 0.0.
    """
    return 1.0 if _answer_span(text) is not None else 0.0


def answer_text(text: str) -> str | None:
    """The content of the answer segment, white space included; None where ``format_reward(text)`` is 0."""
    span = _answer_span(text)
    return None if span is None else text[slice(*span)]


def reasoning_end(text: str) -> int | None:
    """Where the response's own reasoning ends, so that the reference answer can be teacher-forced after it.

    Returns:
        The character offset just after ``</think>``, or None where the reasoning segment is not valid. It is valid if
        the response begins (after white space) with ``<think>``, holds no other ``<think>``, closes it exactly once,
        and has no answer tag inside. What follows the segment is otherwise ``format_reward``'s part.
    """
    tags = list(_TAG.finditer(text))
    # An answer tag inside the reasoning would stand between the two, and fail here too.
    if [tag.group() for tag in tags[:2]] != [THINK_OPEN, THINK_CLOSE]:
        return None
    if any(tag.group() in (THINK_OPEN, THINK_CLOSE) for tag in tags[2:]):
        return None
    opening, closing = tags[:2]
    return closing.end() if _blank(text[: opening.start()]) else None


def _answer_span(text: str) -> tuple[int, int] | None:
    """Start and end of the answer's content in a well-formed response, else None."""
    tags = list(_TAG.finditer(text))
    if [tag.group() for tag in tags] != [THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE]:
        return None
    think_open, think_close, answer_open, answer_close = tags
    outside = (text[: think_open.start()], text[think_close.end() : answer_open.start()], text[answer_close.end() :])
    return (answer_open.end(), answer_close.start()) if all(map(_blank, outside)) else None


def _blank(text: str) -> bool:
    return not text.strip()
