"""What the `perplexity` component is measured on: the reference answer after the response's own reasoning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from openrlhf_maestro.rewards.text import THINK_CLOSE, format_reward


@dataclass(frozen=True)
class TeacherForced:
    """The reference answer of one response, and what it is read after."""

    context: int  # the first tokens of prompt + response: the prompt and the sampled reasoning
    token_ids: list[int]  # answer prefix + reference answer
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
    context = len(prompt_ids) + _tokens_until_closed(response_ids, decode)
    token_ids = [*prefix_ids, *reference_ids]
    if context + len(token_ids) > max_len:
        return None
    return TeacherForced(context, token_ids, len(prefix_ids))


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


@dataclass(frozen=True)
class ReferenceBranch:
    """What is teacher-forced after each of B rows of prompt + response, right-padded to L tokens; all int64.

    A row without a reference has no tokens here; it keeps its place, so that every rank runs as many forwards.
    """

    context: Tensor  # (B,) the branch follows this many of the row's first tokens
    token_ids: Tensor  # (B, L) answer prefix + reference answer
    attention_mask: Tensor  # (B, L) 1 on tokens
    reference_mask: Tensor  # (B, L) 1 on the reference's tokens, the ones that count

    @classmethod
    def of(cls, rows: Sequence[TeacherForced | None]) -> ReferenceBranch:
        """The branch of a micro-batch; None where the response is at fault."""
        parts = [row if row is not None else TeacherForced(1, [], 0) for row in rows]
        token_ids = [torch.tensor(part.token_ids, dtype=torch.long) for part in parts]
        places = [torch.arange(len(part.token_ids)) for part in parts]
        return cls(
            context=torch.tensor([part.context for part in parts]),
            token_ids=_padded(token_ids),
            attention_mask=_padded([torch.ones_like(ids) for ids in token_ids]),
            reference_mask=_padded(
                [(place >= part.reference_start).long() for place, part in zip(places, parts, strict=True)]
            ),
        )

    def to(self, device: torch.device | int) -> ReferenceBranch:
        return ReferenceBranch(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def rows(self, sequences: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The branch as rows of its own, prompt + reasoning + answer prefix + reference, for a forward of its own.

        Args:
            sequences: (B, T) prompt + response.

        Returns:
            (B, W) token ids, right-padded; (B, W) attention mask; (B, W - 1) 1 at the places that predict the
            reference's tokens.
        """
        token_ids, reference = [], []
        for row, context, own, mask, attention in zip(
            sequences, self.context.tolist(), self.token_ids, self.reference_mask, self.attention_mask, strict=True
        ):
            length = int(attention.sum())
            token_ids.append(torch.cat([row[:context], own[:length]]))
            reference.append(torch.cat([mask.new_zeros(context), mask[:length]]))
        return _padded(token_ids), _padded([torch.ones_like(row) for row in token_ids]), _padded(reference)[:, 1:]

    def mean(self, log_probs: Tensor) -> Tensor:
        """(B, ...) log-probs, 0 but at the reference's tokens -> (B,) mean over them; NaN without a reference."""
        return log_probs.sum(-1) / self.reference_mask.sum(-1)


def _padded(rows: list[Tensor]) -> Tensor:
    """Rows of differing length -> (B, longest), padded with 0."""
    return pad_sequence(rows, batch_first=True)
