"""Components that are read off what models say of a response: perplexity, entropy, neg_entropy, preference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openrlhf_maestro.rewards.groups import FAULT
from openrlhf_maestro.rewards.text import format_reward


@dataclass(frozen=True)
class Features:
    """What is known about B responses. A tensor stays None where no component in use needs it.

    In every tensor NaN means that the value could not be measured; the component is then missing for that response.
    """

    texts: Sequence[str]  # B responses, without special tokens
    lengths: Sequence[int]  # (B,) response tokens
    mean_entropy: Tensor | None = None  # (B,) mean over response tokens, nats, at the sampling temperature
    reference_nll: Tensor | None = None  # (B,) mean over the reference's tokens, nats; +inf: it had no room
    preference: Tensor | None = None  # (B,) logit of the preference model; -inf: the text was too long for it


@dataclass(frozen=True)
class MeasuredScorer:
    """Scores the responses of a step at once, from the outputs of models."""

    need: str  # field of Features that must not be None
    function: Callable[[Tensor, Features], Tensor]  # (B,) fp32 of `need`, everything -> (B,)

    def score(self, features: Features) -> Tensor:
        """(B,) fp32; -inf where the response is at fault, NaN where the score is missing.

        Raises:
            ValueError: if what is needed was not measured, or has not B values.
        """
        values, size = getattr(features, self.need), len(features.texts)
        if values is None:
            raise ValueError(f"{self.need!r} is needed and was not measured")
        if len(values) != size or len(features.lengths) != size:
            raise ValueError(f"features: {len(values)} values of {self.need!r} for {size} responses")
        return self.function(values.detach().float().cpu(), features)


def _perplexity(nll: Tensor, features: Features) -> Tensor:
    """-NLL of the reference. Any break of the format is the response's fault, so that breaking it can never pay."""
    broken = torch.tensor([format_reward(text) == 0.0 for text in features.texts], dtype=torch.bool)
    return -nll.masked_fill(broken, torch.inf)


def _entropy(mean_entropy: Tensor, features: Features) -> Tensor:
    return _fault_if_empty(_finite_or_missing(mean_entropy), features)


def _neg_entropy(mean_entropy: Tensor, features: Features) -> Tensor:
    return _entropy(-mean_entropy, features)


def _preference(scores: Tensor, features: Features) -> Tensor:
    too_long = scores.isneginf()
    return _fault_if_empty(_finite_or_missing(scores).masked_fill(too_long, FAULT), features)


PERPLEXITY = MeasuredScorer("reference_nll", _perplexity)
ENTROPY = MeasuredScorer("mean_entropy", _entropy)
NEG_ENTROPY = MeasuredScorer("mean_entropy", _neg_entropy)
PREFERENCE = MeasuredScorer("preference", _preference)


def _finite_or_missing(values: Tensor) -> Tensor:
    """An infinite score is the scorer's failure; only the response itself can be at fault."""
    return values.masked_fill(~values.isfinite(), torch.nan)


def _fault_if_empty(scores: Tensor, features: Features) -> Tensor:
    """An empty response is at fault, whatever was measured on it: ending at once must not pay either."""
    empty = [n == 0 or not text.strip() for n, text in zip(features.lengths, features.texts, strict=True)]
    return scores.masked_fill(torch.tensor(empty, dtype=torch.bool), FAULT)
