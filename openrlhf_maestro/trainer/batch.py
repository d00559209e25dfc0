"""The record of a step: what was sampled, how it was scored, what the policy learns from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openrlhf_maestro.data.prompts import Prompt
from openrlhf_maestro.rollout.responses import Response


@dataclass(frozen=True)
class Rollout:
    """One response to one prompt."""

    prompt: Prompt
    response: Response
    text: str  # without the stop token
    group: int  # 0..N-1, the prompt's place in the step


@dataclass
class Scored:
    """N groups of G responses with K components, N * G = B, in the order of the rollouts. All fp32 on the CPU."""

    rollouts: list[Rollout]
    component_names: list[str]
    raw: Tensor  # (B, K); -inf: the response's fault, NaN: missing
    normalised: Tensor  # (B, K) in [0, 1]; NaN: missing
    weights: Tensor  # (B, K) the w of the scalar
    probs: Tensor  # (B, K) the continuous pi
    actions: Tensor | None  # (B,) long
    hidden: Tensor | None  # (B, H)
    scalar: Tensor  # (B,)
    advantages: Tensor  # (B,)
    constant: Tensor  # (N,) bool, groups whose rewards are all equal
    truncated: Tensor  # (B,) bool
    response_tokens: Tensor  # (B,) long, with the stop token
    mean_entropy: Tensor  # (B,) nats
    kl: Tensor | None  # (B,) mean k3 over the response's tokens, old policy against the reference
    policy_loss_tokens: Tensor  # (B,) long, tokens in the policy loss
    logprob_diff_mean: Tensor  # (B,) |vLLM - trainer|, mean over the response's tokens
    logprob_diff_max: Tensor  # (B,)

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
