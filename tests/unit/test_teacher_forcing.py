"""Where the reference answer is teacher-forced, and whose fault it is where it cannot be."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from openrlhf_maestro.rewards import ReferenceBranch, TeacherForced, teacher_forced

# Every tag one token, and every tag in pieces; a token that holds a tag's end and more.
SINGLE = {0: "<think>", 1: "</think>", 2: "<answer>", 3: "</answer>", 4: "so ", 5: "it is ", 6: "four", 7: "\n"}
PIECES = {10: "<", 11: "think", 12: ">", 13: "</", 14: "answer", 15: "word ", 16: ">\n", 17: ">\n<"}
HALVES = {20: "s", 21: "o "}
TEXTS = SINGLE | PIECES | HALVES
PROMPT, PREFIX, REFERENCE = [90, 91], [80], [70, 71, 72]


def decode(token_ids: Sequence[int]) -> str:
    return "".join(TEXTS[token] for token in token_ids)


def forced(response: Sequence[int], max_len: int = 100) -> tuple[list[int], int] | None:
    """The whole row that the reference is read in, and where in it the reference begins."""
    found = teacher_forced(PROMPT, response, PREFIX, REFERENCE, decode=decode, max_len=max_len)
    if found is None:
        return None
    return [*PROMPT, *response][: found.context] + found.token_ids, found.context + found.reference_start


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


def test_the_sampled_tokens_are_reused() -> None:
    """ "so " was sampled as two tokens, a tokenizer would write one: the reference follows the two."""
    longest_first = sorted(TEXTS, key=lambda token: -len(TEXTS[token]))

    def encode(text: str) -> list[int]:
        if not text:
            return []
        token = next(token for token in longest_first if text.startswith(TEXTS[token]))
        return [token, *encode(text[len(TEXTS[token]) :])]

    sampled = [0, 20, 21, 1]
    assert decode(sampled) == "<think>so </think>" and encode(decode(sampled)) == [0, 4, 1]
    assert forced([*sampled, 2, 6, 3]) == ([90, 91, 0, 20, 21, 1, 80, 70, 71, 72], 7)


def test_an_empty_answer_prefix() -> None:
    found = teacher_forced(PROMPT, [0, 4, 1, 2, 6, 3], [], REFERENCE, decode=decode, max_len=100)
    assert found == TeacherForced(context=5, token_ids=REFERENCE, reference_start=0)


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


# ── a micro-batch of them ──

# Prompt and reasoning of 3, 2 and 4 tokens; the second response is at fault; the last has no answer prefix.
ROWS = [TeacherForced(3, [80, 70, 71], 1), None, TeacherForced(4, [70], 0)]
SEQUENCES = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 0, 0, 0], [6, 7, 8, 9, 0]])


def test_branch_is_right_padded_and_a_fault_has_no_tokens() -> None:
    branch = ReferenceBranch.of(ROWS)
    assert branch.context.tolist() == [3, 1, 4]
    assert branch.token_ids.tolist() == [[80, 70, 71], [0, 0, 0], [70, 0, 0]]
    assert branch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert branch.reference_mask.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert all(tensor.dtype == torch.long for tensor in vars(branch).values())


def test_branch_as_rows_of_its_own() -> None:
    token_ids, attention_mask, predicts = ReferenceBranch.of(ROWS).rows(SEQUENCES)
    assert token_ids.tolist() == [[1, 2, 3, 80, 70, 71], [1, 0, 0, 0, 0, 0], [6, 7, 8, 9, 70, 0]]
    assert attention_mask.tolist() == [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
    assert predicts.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]]


def test_a_micro_batch_of_faults_only() -> None:
    branch = ReferenceBranch.of([None, None])
    assert branch.token_ids.shape == branch.reference_mask.shape == (2, 0)
    token_ids, attention_mask, predicts = branch.rows(SEQUENCES[:2])
    assert token_ids.tolist() == [[1], [1]] and attention_mask.tolist() == [[1], [1]] and predicts.shape == (2, 0)
    assert branch.mean(torch.zeros(2, 0)).isnan().all()


def test_mean_over_the_reference_alone() -> None:
    log_probs = torch.tensor([[0.0, -1.0, -2.0], [0.0, 0.0, 0.0], [-4.0, 0.0, 0.0]])
    means = ReferenceBranch.of(ROWS).mean(log_probs)
    assert means[[0, 2]].tolist() == [-1.5, -4.0] and means[1].isnan()
