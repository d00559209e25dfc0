"""The kinds of reward component: what each needs, how it scores a response, how its scores are normalised.

A new kind is one scoring function and one entry of ``KINDS``; if it needs something that no kind needed before, that is
one more field of ``Features``, filled by the experience maker.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from openrlhf_maestro.rewards.length import length_reward
from openrlhf_maestro.rewards.ranking import group_rank
from openrlhf_maestro.rewards.text import format_reward

Normalisation = Literal["none", "group_rank"]


@dataclass(frozen=True)
class Features:
    """What is known about B responses. A tensor stays None where no component in use needs it.

    In every tensor NaN means that the value could not be measured; the component is then missing for that response.
    """

    texts: Sequence[str]  # B responses, without special tokens
    lengths: Sequence[int]  # (B,) response tokens
    length_limits: Sequence[tuple[float, float]] | None = None  # (B, 2) l_min and l_max, tokens; per data set
    mean_entropy: Tensor | None = None  # (B,) mean over response tokens, nats, at the sampling temperature
    reference_nll: Tensor | None = None  # (B,) mean over the reference's tokens, nats; +inf: it had no room
    preference: Tensor | None = None  # (B,) logit of the preference model; -inf: the text was too long for it
    rule: Tensor | None = None  # (B,) verdict of the task's rule checker, 0 or 1


@dataclass(frozen=True)
class Component:
    """One reward component of a run."""

    name: str  # in metrics and columns: reward/<name>/raw_mean, raw_<name>
    kind: str  # key of KINDS
    normalisation: Normalisation
    needs: tuple[str, ...]  # fields of Features that must not be None
    score: Callable[[Features], Tensor] = field(repr=False, compare=False)  # -> (B,): -inf at fault, NaN missing


def _format(features: Features) -> Tensor:
    return torch.tensor([format_reward(text) for text in features.texts])


def _perplexity(features: Features) -> Tensor:
    """-NLL of the reference. Any break of the format is the response's fault, so that breaking it can never pay."""
    nll = _given(features.reference_nll)
    broken = torch.tensor([format_reward(text) == 0.0 for text in features.texts], dtype=torch.bool)
    return -nll.masked_fill(broken, torch.inf)


def _entropy(features: Features) -> Tensor:
    return _fault_if_empty(_finite_or_missing(features.mean_entropy), features)


def _neg_entropy(features: Features) -> Tensor:
    return _fault_if_empty(-_finite_or_missing(features.mean_entropy), features)


def _length(features: Features) -> Tensor:
    assert features.length_limits is not None, "score_components checks a component's needs"
    pairs = zip(features.lengths, features.length_limits, strict=True)
    scores = [length_reward(n, l_min, l_max) for n, (l_min, l_max) in pairs]
    return _fault_if_empty(torch.tensor(scores), features)


def _preference(features: Features) -> Tensor:
    scores = _given(features.preference)
    too_long = scores.isneginf()
    return _fault_if_empty(_finite_or_missing(scores).masked_fill(too_long, -torch.inf), features)


def _rule(features: Features) -> Tensor:
    return _finite_or_missing(features.rule)


KINDS: dict[str, Component] = {
    component.kind: component
    for component in (
        Component("format", "format", "none", (), _format),
        Component("perplexity", "perplexity", "group_rank", ("reference_nll",), _perplexity),
        Component("entropy", "entropy", "group_rank", ("mean_entropy",), _entropy),
        Component("neg_entropy", "neg_entropy", "group_rank", ("mean_entropy",), _neg_entropy),
        Component("length", "length", "none", ("length_limits",), _length),
        Component("preference", "preference", "group_rank", ("preference",), _preference),
        Component("rule", "rule", "none", ("rule",), _rule),
    )
}


def make_component(kind: str, name: str | None = None, normalisation: Normalisation | None = None) -> Component:
    """The component of a kind, under its own name or another, with its own normalisation or another.

    Raises:
        ValueError: if there is no such kind; the message lists those there are.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown reward component {kind!r}; there are: {', '.join(KINDS)}")
    component = KINDS[kind]
    return replace(component, name=name or kind, normalisation=normalisation or component.normalisation)


def score_components(components: Sequence[Component], features: Features) -> Tensor:
    """Raw scores of B responses.

    Returns:
        (B, K) float32; ``-inf`` where the response is at fault, NaN where the score is missing.

    Raises:
        ValueError: if a component needs a field of ``features`` that is None, or a field has not B values.
    """
    size = len(features.texts)
    columns = []
    for component in components:
        for need in ("lengths", *component.needs):
            values = getattr(features, need)
            if values is None:
                raise ValueError(f"reward component {component.name!r} needs {need!r}, which was not measured")
            if len(values) != size:
                raise ValueError(f"features: {len(values)} values of {need!r} for {size} responses")
        columns.append(component.score(features))
    return torch.stack(columns, dim=-1)


def normalize(raw: Tensor, components: Sequence[Component]) -> Tensor:
    """Apply every component's own normalisation [B].

    Args:
        raw: (N, G, K) raw scores of N groups of G responses, in the order of ``components``; ``-inf`` where the
            response is at fault, NaN where missing. ``+inf`` is no score either, and is treated as missing.

    Returns:
        (N, G, K): ``-inf`` has become 0, a missing score is NaN.

    Raises:
        ValueError: if ``raw`` is not (N, G, K) with K the number of components.
    """
    if raw.dim() != 3 or raw.shape[2] != len(components):
        raise ValueError(f"normalize: expected (N, G, {len(components)}) raw scores, got {tuple(raw.shape)}")
    scores = raw.masked_fill(raw.isposinf(), torch.nan)
    columns = [_NORMALISATIONS[component.normalisation](scores[..., k]) for k, component in enumerate(components)]
    return torch.stack(columns, dim=-1)


@dataclass(frozen=True)
class RawSummary:
    """Per component, over all responses of a step; each (K,) float32."""

    raw_mean: Tensor  # over the finite scores; NaN where there are none
    fault_rate: Tensor  # share of responses at fault (-inf)
    missing_rate: Tensor  # share of responses without a score (NaN or +inf)


def summarize(raw: Tensor) -> RawSummary:
    """Mean, fault rate and missing rate of raw scores (..., K), for the metrics ``reward/<name>/...``."""
    flat = raw.reshape(-1, raw.shape[-1]).float()
    finite = flat.isfinite()
    total = flat.masked_fill(~finite, 0.0).sum(dim=0)
    return RawSummary(
        raw_mean=total / finite.sum(dim=0),  # 0 / 0 is NaN, as documented
        fault_rate=flat.isneginf().float().mean(dim=0),
        missing_rate=(flat.isnan() | flat.isposinf()).float().mean(dim=0),
    )


def _keep_level(values: Tensor) -> Tensor:
    return values.masked_fill(values.isneginf(), 0.0)


_NORMALISATIONS: dict[Normalisation, Callable[[Tensor], Tensor]] = {"none": _keep_level, "group_rank": group_rank}


def _given(values: Tensor | None) -> Tensor:
    assert values is not None, "score_components checks a component's needs"
    return values.detach().float().cpu()


def _finite_or_missing(values: Tensor | None) -> Tensor:
    """An infinite score is the scorer's failure; only the response itself can be at fault."""
    given = _given(values)
    return given.masked_fill(~given.isfinite(), torch.nan)


def _fault_if_empty(scores: Tensor, features: Features) -> Tensor:
    """An empty response is at fault, whatever was measured on it: ending at once must not pay either."""
    empty = [n == 0 or not text.strip() for n, text in zip(features.lengths, features.texts, strict=True)]
    return scores.masked_fill(torch.tensor(empty, dtype=torch.bool), -torch.inf)
