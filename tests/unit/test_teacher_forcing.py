"""Where the reference answer is teacher-forced, and whose fault it is where it cannot be."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from openrlhf_maestro.rewards import teacher_forced

# Every tag one token, and every tag in pieces; a token that holds a tag's end and more.
SINGLE = {0: "<think>", 1: "</think>", 2: "<answer>", 3: "</answer>", 4: "so ", 5: "it is ", 6: "four", 7: "\n"}
PIECES = {10: "<", 11: "think", 12: ">", 13: "</", 14: "answer", 15: "word ", 16: ">\n", 17: ">\n<"}
TEXTS = SINGLE | PIECES
PROMPT, PREFIX, REFERENCE = [90, 91], [80], [70, 71, 72]


def decode(token_ids: Sequence[int]) -> str:
    return "".join(TEXTS[token] for token in token_ids)


def forced(response: Sequence[int], max_len: int = 100) -> tuple[list[int], int] | None:
    found = teacher_forced(PROMPT, response, PREFIX, REFERENCE, decode=decode, max_len=max_len)
    return None if found is None else (found.token_ids, found.reference_start)


def test_tags_of_one_token() -> None:
    response = [0, 4, 5, 1, 2, 6, 3]
    assert decode(response) == "<think>so it is </think><answer>four</answer>"
    assert forced(response) == ([90, 91, 0, 4, 5, 1, 80, 70, 71, 72], 7)


def test_tags_of_several_tokens() -> None:
    response = [10, 11, 12, 15, 15, 13, 11, 12, 10, 14, 12, 6, 13, 14, 12]
    assert decode(response) == "<think>word word </think><answer>four</answer>"
    assert forced(response) == ([90, 91, 10, 11, 12, 15, 15, 13, 11, 12, 80, 70, 71, 72], 11)


def test_a_token_that_goes_beyond_the_closing_tag_is_kept_whole() -> None:
    response = [10, 11, 12, 15, 13, 11, 16, 2, 6, 3]
    assert decode(response) == "<think>word </think>\n<answer>four</answer>"
    assert forced(response) == ([90, 91, 10, 11, 12, 15, 13, 11, 16, 80, 70, 71, 72], 10)


def test_white_space_before_the_reasoning_belongs_to_it() -> None:
    assert forced([7, 0, 4, 1, 7, 2, 6, 3, 7]) == ([90, 91, 7, 0, 4, 1, 80, 70, 71, 72], 7)


def test_empty_reasoning_and_empty_answer() -> None:
    assert forced([0, 1, 2, 3]) == ([90, 91, 0, 1, 80, 70, 71, 72], 5)


def test_the_sampled_answer_does_not_matter() -> None:
    assert forced([0, 4, 1, 2, 6, 3]) == forced([0, 4, 1, 2, 5, 5, 5, 3])


@pytest.mark.parametrize(
    "response",
    [
        [],
        [4, 5, 6],
        [0, 4, 5],  # never closed
        [0, 4, 1],  # no answer
        [2, 6, 3],  # no reasoning
        [0, 4, 1, 2, 6],  # the answer is cut off
        [0, 4, 0, 4, 1, 2, 6, 3],  # nested
        [0, 4, 1, 0, 4, 1, 2, 6, 3],  # twice
        [2, 6, 3, 0, 4, 1],  # the wrong way round
        [0, 4, 1, 4, 2, 6, 3],  # something between the segments
        [4, 0, 4, 1, 2, 6, 3],  # something before them
    ],
)
def test_a_break_of_the_format_is_the_responses_fault(response: list[int]) -> None:
    assert forced(response) is None


def test_the_reference_is_never_cut() -> None:
    """10 tokens in all: at a limit of 10 they fit, at 9 the response is at fault."""
    response = [0, 4, 5, 1, 2, 6, 3]
    assert forced(response, max_len=10) is not None
    assert forced(response, max_len=9) is None


def test_the_answer_s_length_does_not_count() -> None:
    assert forced([0, 4, 5, 1, 2, *[6] * 50, 3], max_len=10) is not None
