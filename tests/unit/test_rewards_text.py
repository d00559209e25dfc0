"""The format reward and the segments of a response."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_maestro.rewards import answer_text, format_reward, length_reward, reasoning_end

GOOD = "<think>two and two</think><answer>4</answer>"

MALFORMED = {
    "empty": "",
    "white space": " \n\t",
    "no tags": "4",
    "no reasoning": "<answer>4</answer>",
    "no answer": "<think>r</think>",
    "answer without tags": "<think>r</think>4",
    "unclosed reasoning": "<think>r<answer>4</answer>",
    "unclosed answer": "<think>r</think><answer>4",
    "unopened reasoning": "r</think><answer>4</answer>",
    "unopened answer": "<think>r</think>4</answer>",
    "swapped": "<answer>4</answer><think>r</think>",
    "closed before opened": "</think>r<think><answer>4</answer>",
    "duplicate reasoning": "<think>r</think><think>s</think><answer>4</answer>",
    "duplicate answer": "<think>r</think><answer>4</answer><answer>5</answer>",
    "answer in the reasoning": "<think>r<answer>4</answer></think><answer>4</answer>",
    "reasoning in the answer": "<think>r</think><answer><think>s</think>4</answer>",
    "nested reasoning": "<think><think>r</think></think><answer>4</answer>",
    "answer only in the reasoning": "<think>r<answer>4</answer></think>",
    "overlapping": "<think>r<answer></think>4</answer>",
    "text before": "well <think>r</think><answer>4</answer>",
    "text between": "<think>r</think> so <answer>4</answer>",
    "text after": "<think>r</think><answer>4</answer> done",
    "left-over closing tag": "<think>r</think><answer>4</answer></answer>",
    "other case": "<THINK>r</THINK><ANSWER>4</ANSWER>",
    "end token left in": "<think>r</think><answer>4</answer><|im_end|>",
}


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"\n {GOOD}\t\n",
        "<think>a\nb</think>\n\n<answer>\n4\n</answer>",
        "<think></think><answer></answer>",
        "<think>1 < 2, <b>, </ think></think><answer>a < b</answer>",
    ],
)
def test_well_formed(text: str) -> None:
    assert format_reward(text) == 1.0


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_has_no_format_reward_and_no_answer(text: str) -> None:
    assert format_reward(text) == 0.0
    assert answer_text(text) is None


def test_answer_text_is_the_content_unchanged() -> None:
    assert answer_text(GOOD) == "4"
    assert answer_text("<think>r</think> <answer>\n a b </answer>\n") == "\n a b "
    assert answer_text("<think>r</think><answer></answer>") == ""


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        (GOOD, "<think>two and two</think>"),
        ("\n <think>r</think>", "\n <think>r</think>"),
        ("<think>r</think>4", "<think>r</think>"),
        ("<think>r</think><answer>4", "<think>r</think>"),
        ("<think></think>", "<think></think>"),
    ],
)
def test_reasoning_end_is_just_after_the_closing_tag(text: str, prefix: str) -> None:
    end = reasoning_end(text)
    assert end is not None
    assert text[:end] == prefix


@pytest.mark.parametrize(
    "name",
    [
        "empty",
        "white space",
        "no tags",
        "no reasoning",
        "unclosed reasoning",
        "unopened reasoning",
        "swapped",
        "closed before opened",
        "duplicate reasoning",
        "answer in the reasoning",
        "reasoning in the answer",
        "nested reasoning",
        "answer only in the reasoning",
        "overlapping",
        "text before",
    ],
)
def test_no_reasoning_end_without_a_valid_reasoning_segment(name: str) -> None:
    assert reasoning_end(MALFORMED[name]) is None


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "x", " ", "\n"]), max_size=9)


@settings(max_examples=400, deadline=None)
@given(PIECES)
def test_format_agrees_with_a_parser_written_as_a_state_machine(pieces: list[str]) -> None:
    # State = number of tags seen so far; text is allowed only inside a segment (states 1 and 3).
    order = ["<think>", "</think>", "<answer>", "</answer>"]
    state: int | None = 0
    for piece in pieces:
        if state is None:
            break
        if piece in order:
            state = state + 1 if state < 4 and piece == order[state] else None
        elif piece.strip() and state not in (1, 3):
            state = None
    assert format_reward("".join(pieces)) == float(state == 4)


@settings(max_examples=200, deadline=None)
@given(PIECES)
def test_a_well_formed_response_has_both_segments(pieces: list[str]) -> None:
    text = "".join(pieces)
    if format_reward(text) == 1.0:
        end, answer = reasoning_end(text), answer_text(text)
        assert end is not None and answer is not None
        assert text[end:].strip() == f"<answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("n", "expected"),
    [(0, 1.0), (1, 1.0), (10, 1.0), (11, 0.9), (15, 0.5), (19, 0.1), (20, 0.0), (21, 0.0), (999, 0.0)],
)
def test_length_reward(n: int, expected: float) -> None:
    assert length_reward(n, 10, 20) == pytest.approx(expected, abs=1e-12)


def test_length_reward_with_equal_limits_is_a_step() -> None:
    assert [length_reward(n, 5, 5) for n in (4, 5, 6)] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(("n", "l_min", "l_max"), [(1, 3, 2), (1, -1, 2), (-1, 1, 2), (1, float("nan"), 2)])
def test_length_reward_refuses_nonsense(n: int, l_min: float, l_max: float) -> None:
    with pytest.raises(ValueError, match="length reward"):
        length_reward(n, l_min, l_max)
