"""What the `perplexity` component is measured on: the reference answer after the response's own reasoning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openrlhf_maestro.rewards.text import THINK_CLOSE, format_reward


@dataclass(frozen=True)
class TeacherForced:
    """prompt + sampled reasoning + answer prefix + reference answer."""

    token_ids: list[int]
    reference_start: int  # the reference's tokens are token_ids[reference_start:]


def teacher_forced(
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    prefix_ids: Sequence[int],
    reference_ids: Sequence[int],
    *,
    decode: Callable[[Sequence[int]], str],
    max_len: int,
) -> TeacherForced | None:
    """The reference answer teacher-forced after the response's own reasoning segment [B].

    The sampled reasoning tokens are taken as they are, not tokenised again. The reference is never cut.

    Args:
        response_ids: the response without its stop token.
        prefix_ids: tokens between the reasoning segment and the reference, such as those of "<answer>".
        decode: token ids -> text, special tokens kept.
        max_len: longest sequence, tokens.

    Returns:
        None where the response is at fault: not in the format, or too long for the reference to fit after it.
    """
    if format_reward(decode(response_ids)) == 0.0:
        return None
    reasoning = response_ids[: _tokens_until_closed(response_ids, decode)]
    token_ids = [*prompt_ids, *reasoning, *prefix_ids, *reference_ids]
    if len(token_ids) > max_len:
        return None
    return TeacherForced(token_ids, len(token_ids) - len(reference_ids))


def _tokens_until_closed(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int:
    """The smallest number of leading tokens whose text holds the closing tag, with what its last token adds to it."""
    low, high = 1, len(token_ids)
    while low < high:
        middle = (low + high) // 2
        if THINK_CLOSE in decode(token_ids[:middle]):
            high = middle
        else:
            low = middle + 1
    return low
