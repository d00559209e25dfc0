"""The numbers of the page, computed from the run's files: key figures, weights, where the time goes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from openrlhf_maestro.report.formats import NONE, number, percent, points, seconds
from openrlhf_maestro.report.held_out import accuracy_rows
from openrlhf_maestro.report.run import Run

# Parts of time/step_s, in the order they happen.
PHASES = {
    "generation": "time/generation_s",
    "experience": "time/experience_s",
    "update": "time/update_s",
    "sync": "time/sync_s",
}
REST = "other"

# Weights closer than this are equal but for rounding.
SAME_WEIGHT = 1e-6


@dataclass(frozen=True)
class Card:
    """One key figure: a label, the value, and a line that puts it in context."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Timing:
    """Time of each phase at each step that has a total; `other` is what the phases leave of it."""

    steps: list[int]
    total: list[float]
    phases: dict[str, list[float]]

    @property
    def median_total(self) -> float:
        return _median(self.total)

    def median(self, phase: str) -> float:
        return _median(self.phases[phase])

    def share(self, phase: str) -> float:
        """Part of the whole run's time; NaN before any."""
        whole = sum(self.total)
        return sum(self.phases[phase]) / whole if whole else math.nan


@dataclass(frozen=True)
class ComponentTimes:
    """Median seconds of a step that went into each reward component, and those that nothing else filled."""

    seconds: dict[str, float]
    wait: float  # the step waited for scores of the text alone; NaN where it was not logged


def component_times(run: Run) -> ComponentTimes | None:
    """None where no component's time was logged, as in older runs."""
    logged = {name: run.series(f"time/reward/{name}_s") for name in run.components()}
    medians = {name: _median(series.values) for name, series in logged.items() if series}
    return ComponentTimes(medians, _median(run.series("time/reward_wait_s").values)) if medians else None


def timing(run: Run) -> Timing:
    """How the seconds of each step divide over the phases; steps without a total are left out."""
    logged = run.series("time/step_s")
    whole = {step: value for step, value in zip(logged.steps, logged.values, strict=True) if not math.isnan(value)}
    steps, total = list(whole), list(whole.values())
    logged_parts = {name: run.series(key).at(steps) for name, key in PHASES.items()}
    phases = {name: [0.0 if math.isnan(value) else value for value in values] for name, values in logged_parts.items()}
    parts = [sum(at_step) for at_step in zip(*phases.values(), strict=True)]
    phases[REST] = [max(0.0, all_of_it - known) for all_of_it, known in zip(total, parts, strict=True)]
    return Timing(steps, total, phases)


def per_token(run: Run, times: Timing) -> Timing:
    """The same in milliseconds a response token, of the steps whose tokens were logged."""
    tokens = dict(zip(times.steps, run.series("rollout/tokens").at(times.steps), strict=True))
    kept = [index for index, step in enumerate(times.steps) if tokens[step] > 0]

    def divided(values: list[float]) -> list[float]:
        return [1000 * values[index] / tokens[times.steps[index]] for index in kept]

    return Timing(
        [times.steps[index] for index in kept],
        divided(times.total),
        {name: divided(values) for name, values in times.phases.items()},
    )


def constant_weights(run: Run) -> dict[str, float]:
    """The weight of each component where none ever changed (equal, fixed or single weights); else empty.

    After one step nothing that learns can have changed, so that this says nothing of it.
    """
    overall = {name: run.series(f"conductor/weight/{name}").finite() for name in run.components()}
    logged = {name: values for name, values in overall.items() if values}
    learned = run.option("conductor.kind") in ("conductor", None)  # or it is not known
    if learned and any(len(values) < 2 for values in logged.values()):
        return {}
    constant = all(max(values) - min(values) < SAME_WEIGHT for values in logged.values())
    return {name: values[-1] for name, values in logged.items()} if constant else {}


def cards(run: Run) -> list[Card]:
    """The key figures at the top of the page."""
    return [
        Card("Policy", _model_name(run), weighting(run)),
        _steps_card(run),
        _batch_card(run),
        _accuracy_card(run),
        _reward_card(run),
        _time_card(run),
        _length_card(run),
        _logprob_card(run),
    ]


def run_name(run: Run) -> str:
    """`run.name`, or the folder's name where it is not known."""
    return str(run.option("run.name") or run.path.resolve().name)


def weighting(run: Run) -> str:
    """Who weighs the reward components, `conductor.kind` in words."""
    kind = run.option("conductor.kind")
    if kind == "conductor":
        return "learned Conductor"
    if kind == "single":
        return f"{run.option('conductor.component')} alone"
    return f"{kind} weights" if kind else ""


def _model_name(run: Run) -> str:
    model = run.option("actor.model_name_or_path")
    return str(model).rstrip("/").rpartition("/")[2] if model else NONE


def _steps_card(run: Run) -> Card:
    planned, done = run.option("run.max_steps"), run.last_step
    state = "finished" if run.finished else "so far"
    if isinstance(planned, int) and planned > 0:
        return Card("GRPO steps", f"{done} of {planned}", state)
    return Card("GRPO steps", str(done), state)


def _batch_card(run: Run) -> Card:
    prompts, group = run.option("rollout.batch_size"), run.option("rollout.n_samples_per_prompt")
    if not (isinstance(prompts, int) and isinstance(group, int)):
        return Card("Prompts × group size", NONE)
    return Card("Prompts × group size", f"{prompts} × {group}", f"{prompts * group} responses a step")


def _accuracy_card(run: Run) -> Card:
    rows = accuracy_rows(run)
    if not rows:
        return Card("Held-out accuracy", NONE, "not evaluated")
    row = rows[-1]
    size = f"n = {row.last.n}" if row.last.n else "n not logged"
    change = row.change(row.first.step, row.last.step)
    if math.isnan(change):
        return Card("Held-out accuracy", percent(row.last.share), f"at step {row.last.step}, {size}")
    value = f"{100 * row.first.share:.1f} → {percent(row.last.share)}"
    return Card("Held-out accuracy", value, f"{points(change)} points, {size}")


def _reward_card(run: Run) -> Card:
    values = run.series("reward/scalar_mean").finite()
    if not values:
        return Card("Final scalar reward", NONE)
    return Card("Final scalar reward", number(values[-1]), f"{number(values[0])} at the first step")


def _time_card(run: Run) -> Card:
    times = timing(run)
    a_token = per_token(run, times)
    note = f"{number(a_token.median_total)} ms a response token" if a_token.steps else ""
    return Card("Median step time", seconds(times.median_total), note)


def _length_card(run: Run) -> Card:
    lengths, cut = run.series("rollout/response_length_mean").finite(), run.series("rollout/truncated_rate").finite()
    if not lengths:
        return Card("Response length", NONE)
    note = f"{number(lengths[0])} at first" + (f", {percent(cut[-1])} truncated" if cut else "")
    return Card("Final response length", f"{number(lengths[-1])} tokens", note)


def _logprob_card(run: Run) -> Card:
    largest = run.series("rollout/logprob_diff_max").finite()
    means = run.series("rollout/logprob_diff_mean").finite()
    if not largest:
        return Card("vLLM − trainer log-prob", NONE)
    note = f"mean at most {number(max(means), 2)}" if means else ""
    return Card("vLLM − trainer log-prob", f"≤ {number(max(largest), 2)}", note)


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan
