"""The numbers of a step, by the names of metrics.jsonl (docs/metrics.md)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from openrlhf_maestro.conductor import LearnedOrchestrator, Orchestrator
from openrlhf_maestro.objective import constant_groups
from openrlhf_maestro.rewards import summarize
from openrlhf_maestro.trainer.batch import Scored

# Below this a product of deviations is rounding.
_NO_VARIATION = 1e-9

PHASES = ("generation", "experience", "update", "sync")


class Stopwatch:
    """Wall-clock seconds of a step's phases."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """`time/step_s` is the sum of the phases."""
        phases = {f"time/{name}_s": seconds for name, seconds in self.seconds.items()}
        return {"time/step_s": sum(self.seconds.values())} | phases


def step_metrics(scored: Scored, update: Mapping[str, float], orchestrator: Orchestrator) -> dict[str, float]:
    """Everything but the timings. docs/metrics.md says which can be recomputed from the rollout file, and how."""
    return (
        _rollout(scored)
        | _rewards(scored)
        | _weights(scored)
        | (_conductor(scored, orchestrator) if isinstance(orchestrator, LearnedOrchestrator) else {})
        | {f"policy/{name}": value for name, value in update.items()}
    )


def _rollout(scored: Scored) -> dict[str, float]:
    tokens = scored.response_tokens
    return {
        "rollout/tokens": int(tokens.sum()),
        "rollout/response_length_mean": _mean(tokens),
        "rollout/truncated_rate": _mean(scored.truncated),
        "rollout/logprob_diff_mean": scored.mean_logprob_diff,
        "rollout/logprob_diff_max": float(scored.logprob_diff_max.max()),
    }


def _rewards(scored: Scored) -> dict[str, float]:
    summary = summarize(scored.raw)
    metrics: dict[str, float] = {}
    for k, name in enumerate(scored.component_names):
        metrics[f"reward/{name}/raw_mean"] = float(summary.raw_mean[k])
        metrics[f"reward/{name}/missing_rate"] = float(summary.missing_rate[k])
        metrics[f"reward/{name}/fault_rate"] = float(summary.fault_rate[k])
        normalised = scored.normalised[:, k]
        metrics[f"reward/{name}/norm_mean"] = float(normalised.nanmean())
        groups = normalised.view(-1, scored.group_size)
        metrics[f"reward/{name}/norm_group_std"] = group_std(groups)
        metrics[f"reward/{name}/constant_rate"] = _mean(constant_groups(groups))
    for name, seconds in scored.reward_s.items():
        metrics[f"time/reward/{name}_s"] = seconds
    if scored.anchor is not None:
        metrics["conductor/anchor/raw_mean"] = float(summarize(scored.anchor[:, None]).raw_mean)
        metrics["conductor/anchor/scored_rate"] = _mean(~scored.anchor.isnan())
    metrics["time/reward_wait_s"] = scored.reward_wait_s
    metrics["rollout/filtered_rate"] = scored.filtered_rate
    metrics["reward/scalar_mean"] = float(scored.scalar.nanmean())
    metrics["advantage/frac_zero_std"] = _mean(scored.constant)
    return metrics


def _weights(scored: Scored) -> dict[str, float]:
    """Means of the continuous distribution, over all responses and by data source."""
    metrics: dict[str, float] = {}
    for k, name in enumerate(scored.component_names):
        metrics[f"conductor/weight/{name}"] = float(scored.probs[:, k].mean())
    for datasource in scored.datasources:
        of_source = scored.probs[scored.is_source(datasource)].mean(0)
        for k, name in enumerate(scored.component_names):
            metrics[f"conductor/weight/{datasource}/{name}"] = float(of_source[k])
    return metrics


def _conductor(scored: Scored, orchestrator: LearnedOrchestrator) -> dict[str, float]:
    entropy = -(scored.probs * scored.probs.log()).sum(-1)
    metrics = {
        "conductor/entropy": _mean(entropy),
        "conductor/temperature": orchestrator.conductor.temperature,
        "conductor/max_weight": float(scored.probs.mean(0).max()),
    }
    if scored.actions is None:  # the weights are the distribution itself
        return metrics
    for k, name in enumerate(scored.component_names):
        chosen = scored.actions.eq(k).double()
        metrics[f"conductor/action_freq/{name}"] = _mean(chosen)
        metrics[f"conductor/action_reward_corr/{name}"] = correlation(chosen, scored.scalar.double())
    return metrics


def group_std(values: Tensor) -> float:
    """Mean over the groups of the sample standard deviation in each.

    (N, G), NaN left out; a group of fewer than two values does not count, and NaN is returned where none does.
    """
    present = ~values.isnan()
    count = present.sum(1)
    mean = values.nan_to_num().sum(1) / count.clamp(min=1)
    squares = ((values - mean[:, None]).square().masked_fill(~present, 0.0)).sum(1)
    std = (squares / (count - 1).clamp(min=1)).sqrt()[count > 1]
    return float(std.double().mean())


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's, of (B,) and (B,), rows with a NaN left out; 0 where one of them does not vary."""
    rows = ~(first.isnan() | second.isnan())
    first, second = first[rows] - first[rows].mean(), second[rows] - second[rows].mean()
    scale = (first.square().sum() * second.square().sum()).sqrt()
    return float((first * second).sum() / scale) if scale > _NO_VARIATION else 0.0


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
