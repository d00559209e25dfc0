"""The components of a run: how each kind is made, and how raw scores become comparable.

A new kind is a section in `config/components.py` and an entry of ``KINDS`` here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf_maestro.config.components import ComponentSection, Normalisation
from openrlhf_maestro.rewards.groups import FAULT, GroupScorer
from openrlhf_maestro.rewards.measured import ENTROPY, NEG_ENTROPY, PERPLEXITY, PREFERENCE, MeasuredScorer
from openrlhf_maestro.rewards.ranking import group_rank
from openrlhf_maestro.rewards.rules import RuleScorer, format_scores, length_scores, match_scores, verdict_scores
from openrlhf_maestro.rewards.standardising import group_zscore

Scorer = GroupScorer | MeasuredScorer


@dataclass(frozen=True)
class Context:
    """What scorers may need to know of the run."""

    max_new_tokens: int  # longest response
    folder: Path | None = None  # where a scorer may keep files; None: nowhere
    endpoints: dict[Any, Any] = field(default_factory=dict)  # servers that several `remote` components share


@dataclass(frozen=True)
class Component:
    """One reward component of a run."""

    name: str  # in metrics and columns: reward/<name>/raw_mean, raw_<name>
    normalisation: Normalisation
    gate: str | None  # name of the component that must be above 0
    scorer: Scorer


@dataclass(frozen=True)
class Kind:
    """How the components of a kind are normalised where nothing else is asked for [B], and made."""

    normalisation: Normalisation
    make: Callable[[Any, Context], Scorer]  # of its section in config/components.py


def _judge(section: Any, context: Context) -> Scorer:
    from openrlhf_maestro.rewards.judge import JudgeScorer

    cache = Path(section.cache) if section.cache else None
    if cache is None and context.folder is not None:
        cache = context.folder / f"judge_{section.label}.sqlite"
    return JudgeScorer(section, cache=None if section.cache == "off" else cache)


def _remote(section: Any, context: Context) -> Scorer:
    from openrlhf_maestro.rewards.remote import RemoteScorer

    return RemoteScorer(section, context.endpoints)


def _callable(section: Any, _context: Context) -> Scorer:
    from openrlhf_maestro.rewards.callables import CallableScorer

    return CallableScorer(section)


KINDS: Mapping[str, Kind] = {
    "format": Kind("none", lambda _section, _context: RuleScorer(format_scores)),
    "perplexity": Kind("group_rank", lambda _section, _context: PERPLEXITY),
    "entropy": Kind("group_rank", lambda _section, _context: ENTROPY),
    "neg_entropy": Kind("group_rank", lambda _section, _context: NEG_ENTROPY),
    "length": Kind("none", lambda section, context: RuleScorer(length_scores(section, context.max_new_tokens))),
    "preference": Kind("group_rank", lambda _section, _context: PREFERENCE),
    "rule": Kind("none", lambda _section, _context: RuleScorer(verdict_scores)),
    "match": Kind("none", lambda section, _context: RuleScorer(match_scores(section))),
    "judge": Kind("group_rank", _judge),
    "remote": Kind("group_rank", _remote),
    "callable": Kind("group_rank", _callable),
}


# What rewards.normalisation says of components that say nothing themselves; `paper` leaves it to the kind.
PRESETS: Mapping[str, Normalisation] = {"rank": "group_rank", "zscore": "zscore", "none": "none"}


def make_components(
    sections: Sequence[ComponentSection], context: Context, normalisation: str = "paper"
) -> list[Component]:
    """The components of a configuration, in its order; `normalisation` is rewards.normalisation.

    Raises:
        ConfigError: a scorer cannot be made: a function is not found, a key is not set.
    """
    return [
        Component(
            name=section.label,
            normalisation=section.normalisation or PRESETS.get(normalisation, KINDS[section.kind].normalisation),
            gate=section.gate,
            scorer=KINDS[section.kind].make(section, context),
        )
        for section in sections
    ]


def apply_gates(raw: Tensor, components: Sequence[Component]) -> Tensor:
    """Raw scores (B, K) with every closed gate made the response's fault.

    A component with a gate is -inf where the gate's own raw value is 0 or below or the response's fault, and missing
    (NaN) where the gate is, unless the response is at fault anyway. Gates are read before any gate is applied: they do
    not follow one another.
    """
    names = [component.name for component in components]
    columns = []
    for k, component in enumerate(components):
        column = raw[:, k]
        if component.gate is not None:
            gate = raw[:, names.index(component.gate)]
            column = column.masked_fill(gate <= 0, FAULT).masked_fill(gate.isnan() & ~column.isneginf(), torch.nan)
        columns.append(column)
    return torch.stack(columns, dim=-1)


def normalize(raw: Tensor, components: Sequence[Component]) -> Tensor:
    """Apply every component's own normalisation [B].

    Args:
        raw: (N, G, K) raw scores of N groups of G responses, in the order of ``components``; ``-inf`` where the
            response is at fault, NaN where missing. ``+inf`` is no score either, and is treated as missing.

    Returns:
        (N, G, K): ``-inf`` has become 0 (under ``zscore`` what lies below every other), a missing score is NaN.

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


_NORMALISATIONS: dict[Normalisation, Callable[[Tensor], Tensor]] = {
    "none": _keep_level,
    "group_rank": group_rank,
    "zscore": group_zscore,
}
