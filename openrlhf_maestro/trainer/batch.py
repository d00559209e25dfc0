"""The record of a step: what was sampled, how it was scored, what the policy learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from openrlhf_maestro.data.prompts import Prompt
from openrlhf_maestro.rewards import Group
from openrlhf_maestro.rollout.responses import Response


@dataclass(frozen=True)
class Rollout:
    """One response to one prompt."""

    prompt: Prompt
    response: Response
    text: str  # without the stop token
    group: int  # 0..N-1, the prompt's place in the step


def as_group(rollouts: Sequence[Rollout], tokenizer: Any) -> Group:
    """The responses to one prompt, as text scorers see them."""
    prompt = rollouts[0].prompt
    return Group(
        prompt=prompt.text,
        rendered_prompt=tokenizer.decode(prompt.token_ids),
        queries=tokenizer.batch_decode([[*prompt.token_ids, *rollout.response.token_ids] for rollout in rollouts]),
        responses=[rollout.text for rollout in rollouts],
        token_ids=[rollout.response.token_ids for rollout in rollouts],
        truncated=[rollout.response.truncated for rollout in rollouts],
        reference=prompt.reference,
        datasource=prompt.datasource,
        messages=prompt.messages,
        metadata=prompt.metadata,
    )


def first_equals(rollouts: Sequence[Rollout]) -> Tensor:
    """(B,) long: the row of the first response with the same tokens in the same group, often the row itself.

    Equal responses are equally good. What a model says of them differs by rounding, with the padding and the rank they
    were read on, and ranks would make a whole place of that.
    """
    first: dict[tuple[Any, ...], int] = {}
    rows = [first.setdefault((rollout.group, *rollout.response.token_ids), row) for row, rollout in enumerate(rollouts)]
    return torch.tensor(rows)


@dataclass
class TokenValues:
    """Values of B responses, right-padded to one width T - 1; position t is that of the prediction of token t + 1."""

    mask: Tensor  # (B, T - 1) fp32, 1 on the response's tokens
    log_probs: Tensor  # (B, T - 1) fp32, the trainer's
    rollout_log_probs: Tensor  # (B, T - 1) fp32, vLLM's
    entropy: Tensor  # (B, T - 1) fp32 nats
    ref_log_probs: Tensor | None  # (B, T - 1) fp32, the reference's


@dataclass
class Scored:
    """N groups of G responses with K components, N * G = B, in the order of the rollouts. All fp32 on the CPU."""

    rollouts: list[Rollout]
    component_names: list[str]
    raw: Tensor  # (B, K); -inf: the response's fault, NaN: missing
    normalised: Tensor  # (B, K), in [0, 1] where ranked; NaN: missing
    anchor: Tensor | None  # (B,) raw scores of the trusted signal; -inf: at fault, NaN: not asked or missing
    weights: Tensor  # (B, K) the w of the scalar
    probs: Tensor  # (B, K) the continuous pi
    actions: Tensor | None  # (B,) long
    hidden: Tensor | None  # (B, H)
    scalar: Tensor  # (B,)
    advantages: Tensor  # (B,)
    constant: Tensor  # (B,) bool, whether the rewards of its group are all equal
    spread: Tensor  # (B,) largest less smallest reward of its group
    truncated: Tensor  # (B,) bool
    response_tokens: Tensor  # (B,) long, with the stop token
    mean_entropy: Tensor  # (B,) nats
    kl: Tensor | None  # (B,) mean over the response's tokens, old policy against the reference
    kl_penalty: Tensor | None  # (B,) taken off the scalar; None where the KL is in the loss
    policy_loss_tokens: Tensor  # (B,) long, tokens in the policy loss
    logprob_diff_mean: Tensor  # (B,) |vLLM - trainer|, mean over the response's tokens
    logprob_diff_max: Tensor  # (B,)
    log_prob_mean: Tensor  # (B,) of the response's tokens, the trainer's
    tokens: TokenValues
    missing_reasons: dict[str, str]  # by component: why the first missing value is missing
    reward_s: dict[str, float]  # by component: seconds in which it was worked on
    reward_wait_s: float  # seconds in which nothing but text scorers was waited for
    filtered_rate: float = 0.0  # share of the groups sampled that dynamic filtering left out

    @property
    def group_size(self) -> int:
        """G."""
        return sum(rollout.group == self.rollouts[0].group for rollout in self.rollouts)

    @property
    def mean_logprob_diff(self) -> float:
        """Over every response token of the step."""
        return float((self.logprob_diff_mean * self.response_tokens).sum() / self.response_tokens.sum())

    def is_source(self, datasource: str) -> Tensor:
        """(B,) bool."""
        return torch.tensor([rollout.prompt.datasource == datasource for rollout in self.rollouts])

    @property
    def datasources(self) -> list[str]:
        return sorted({rollout.prompt.datasource for rollout in self.rollouts})

    def select(self, rows: Tensor) -> Scored:
        """Only these responses (n,) long; whole groups are the caller's part."""
        chosen: dict[str, Any] = {name: value[rows] for name, value in _tensors(self).items()}
        tokens = replace(self.tokens, **{name: value[rows] for name, value in _tensors(self.tokens).items()})
        return replace(self, rollouts=[self.rollouts[row] for row in rows.tolist()], tokens=tokens, **chosen)


def concatenate(parts: Sequence[Scored], group_size: int) -> Scored:
    """One record of several batches of whole groups; the groups are numbered anew, token values padded with 0."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    joined: dict[str, Any] = {name: torch.cat([_tensors(part)[name] for part in parts]) for name in _tensors(first)}
    width = max(part.tokens.mask.shape[1] for part in parts)
    tokens = {
        name: torch.cat([_widened(_tensors(part.tokens)[name], width) for part in parts])
        for name in _tensors(first.tokens)
    }
    rollouts = [rollout for part in parts for rollout in part.rollouts]
    return replace(
        first,
        rollouts=[replace(rollout, group=index // group_size) for index, rollout in enumerate(rollouts)],
        tokens=replace(first.tokens, **tokens),
        missing_reasons={name: reason for part in reversed(parts) for name, reason in part.missing_reasons.items()},
        reward_s={name: sum(part.reward_s[name] for part in parts) for name in first.reward_s},
        reward_wait_s=sum(part.reward_wait_s for part in parts),
        **joined,
    )


def _tensors(record: Any) -> dict[str, Tensor]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _widened(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))
