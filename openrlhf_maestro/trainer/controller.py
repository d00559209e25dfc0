"""The training loop, in the one process that sees whole groups of responses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from openrlhf_maestro.conductor import LearnedOrchestrator, Observation, Orchestrator
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.evaluation.tables import Summary
from openrlhf_maestro.trainer.batch import Scored
from openrlhf_maestro.trainer.best import BestModel
from openrlhf_maestro.trainer.checkpoint import save_checkpoint
from openrlhf_maestro.trainer.collector import Collector
from openrlhf_maestro.trainer.console import CONSOLE, TrainingConsole
from openrlhf_maestro.trainer.diagnostics import CollapseWatch
from openrlhf_maestro.trainer.evaluation import Evaluator, evaluation_metrics
from openrlhf_maestro.trainer.loggers import Loggers
from openrlhf_maestro.trainer.metrics import Stopwatch, step_metrics
from openrlhf_maestro.trainer.resume import saved_steps
from openrlhf_maestro.trainer.run_dir import RunDir
from openrlhf_maestro.trainer.stopping import StopRequest
from openrlhf_maestro.trainer.sync import WeightSync
from openrlhf_maestro.trainer.workers import Workers

# Mean |log p_vllm - log p_trainer| at which a run stops. fp32: 4e-7 was measured; bf16 rounds each by about 1e-2.
LOGPROB_DIFF_LIMITS = {"fp32": 1e-3, "bf16": 5e-2}


@dataclass(frozen=True)
class Outcome:
    """Held-out verdicts before and after, if there are any; the last step done where it was asked to stop."""

    before: Summary | None
    after: Summary | None
    stopped_after: int | None = None


@dataclass
class Controller:
    """Everything a step needs; `train` is the loop."""

    config: MaestroConfig
    run_dir: RunDir
    workers: Workers
    collector: Collector
    orchestrator: Orchestrator
    sync: WeightSync
    evaluator: Evaluator | None
    logprob_diff_limit: float
    watch: CollapseWatch | None  # where the weights are learned
    best: BestModel | None  # where it is evaluated between steps
    loggers: Loggers
    stop: StopRequest

    def train(self, start: int, total: int) -> Outcome:
        """Steps `start` + 1 to `total`, or to the one in which the run is asked to stop."""
        before = self._evaluate_between_steps(0) if start == 0 else None
        after = before
        self.stop.begin_steps()
        with TrainingConsole(total, start) as console:
            for step in range(start + 1, total + 1):
                clock = Stopwatch()

                scored = self.collect(step, clock, console)
                if scored is None:
                    CONSOLE.print(f"the prompts are used up after step {step - 1}: too many groups were filtered out")
                    if not self.is_due(step - 1, self.config.eval.steps):
                        after = self._evaluate_between_steps(step - 1)
                    break
                self.check_agreement(scored, step)
                console.phase("updating")
                with clock.phase("update"):
                    update = self.update_policy(self.collector.maker.experiences(scored), step)
                    meta = self.update_conductor(scored)
                with clock.phase("sync"):
                    self.sync_weights(step)

                metrics = step_metrics(scored, update, self.orchestrator) | meta | clock.metrics()
                if self.is_due(step, self.config.eval.steps, total):
                    console.phase("evaluating")
                    with self.kept(step, partial(self.record, step, scored, metrics)):
                        after = self._evaluate(step)
                    metrics |= evaluation_metrics(after) if after else {}
                    self.keep_best(step, metrics)
                self.record(step, scored, metrics)
                if self.is_due(step, self.config.ckpt.save_steps) or (self.stop.requested and step < total):
                    console.phase("saving")
                    self.save_checkpoint(step)
                console.step(step, metrics, self.config.component_names)
                for warning in self.watch.warnings(metrics) if self.watch is not None else ():
                    CONSOLE.print(f"step {step}: {warning}", soft_wrap=True)
                if self.stop.requested and step < total:
                    return Outcome(before, after, stopped_after=step)
        return Outcome(before, after)

    def collect(self, step: int, clock: Stopwatch, console: TrainingConsole) -> Scored | None:
        """The step's scored groups. Where a scorer ends the run, a checkpoint of the step before is written first."""
        with self.kept(step - 1):
            return self.collector.collect(step, clock, console)

    @contextmanager
    def kept(self, done: int, record: Callable[[], None] | None = None) -> Iterator[None]:
        """Where the block ends the run, what was done until step `done` is on disk first: its record, a checkpoint."""
        try:
            yield
        except RunError:
            if record is not None:
                record()
            if done > 0 and done not in saved_steps(self.run_dir.checkpoints):
                self.save_checkpoint(done)
            raise

    def update_policy(self, micro_batches: Sequence[Any], step: int) -> dict[str, float]:
        """The optimiser step (steps, where train.batch_size is a part of the rollout) on exactly these responses."""
        policy = self.workers.policy
        ray.get(policy.async_run_method_batch("append", experience=list(micro_batches)))
        if self.config.ds.enable_sleep:
            ray.get(policy.async_run_method("reload_states"))
        status: dict[str, float] = ray.get(policy.async_run_method("fit", kl_ctl=self.config.algo.kl.init_coef))[0]
        if self.config.ds.enable_sleep:
            ray.get(policy.async_run_method("offload_states"))
        for name in ("loss", "grad_norm"):
            if not math.isfinite(status[name]):
                raise RunError(
                    f"step {step}: the policy's {name} is {status[name]}. Continue from the last checkpoint "
                    "(--run.resume auto) with a lower actor.adam.lr or actor.max_norm."
                )
        return status

    def update_conductor(self, scored: Scored) -> dict[str, float]:
        """Fill the meta-buffer; every M steps one update of the Conductor."""
        self.orchestrator.observe(
            Observation(
                h=scored.hidden,
                actions=scored.actions,
                advantages=scored.advantages,
                components=scored.normalised,
                anchor=scored.anchor.masked_fill(scored.anchor.isposinf(), math.nan)
                if scored.anchor is not None
                else None,
                log_prob_mean=scored.log_prob_mean,
                truncated=scored.truncated,
                group_size=self.config.rollout.n_samples_per_prompt,
            )
        )
        meta = self.orchestrator.update()
        if not isinstance(self.orchestrator, LearnedOrchestrator):
            return {}
        if meta is not None:
            self.save_conductor(self.run_dir.conductor)
        values = meta or {}
        return {
            "conductor/updates": self.orchestrator.updates,
            "conductor/meta_loss": values.get("meta_loss", math.nan),
            "conductor/lr_h_l1": values.get("lr_h_l1", math.nan),
            "conductor/meta_reward": values.get("meta_reward", math.nan),
        }

    def save_conductor(self, folder: Path) -> None:
        """The Conductor, where there is one, in the layout of huggingface_hub's model mixin."""
        if isinstance(self.orchestrator, LearnedOrchestrator):
            conductor: Any = self.orchestrator.conductor  # huggingface_hub's mixin is not typed
            conductor.save_pretrained(folder)

    def sync_weights(self, step: int) -> None:
        """Policy to vLLM after every step, into the reference every `objective.ref_sync_steps`."""
        if self.is_due(step, self.config.objective.ref_sync_steps):
            self.sync.to_reference(self.config.objective.ref_mixup_alpha)
        self.sync.to_engines()

    def check_agreement(self, scored: Scored, step: int) -> None:
        """vLLM sampled with the weights that the trainer has: their log-probs of the same tokens must agree."""
        if scored.mean_logprob_diff > self.logprob_diff_limit:
            raise RunError(
                f"step {step}: vLLM and the trainer disagree about the sampled tokens' log-probs by "
                f"{scored.mean_logprob_diff:.2e} on average (limit {self.logprob_diff_limit:.0e}): the weight sync is "
                "broken or their precision differs. Check ds.param_dtype; run.max_logprob_diff sets the limit."
            )

    def save_checkpoint(self, step: int) -> None:
        drawn = self.collector.drawn
        best = self.best.step if self.best is not None else None
        save_checkpoint(self.config, self.run_dir, self.workers, self.orchestrator, step, drawn, best)

    def keep_best(self, step: int, metrics: dict[str, float]) -> None:
        """The policy and the Conductor of the best evaluation so far, in run.dir/best."""
        if self.best is not None and self.best.update(step, metrics, self.export):
            CONSOLE.print(f"step {step}: the best evaluation so far, kept in {self.run_dir.best}/", soft_wrap=True)

    def export(self, folder: Path) -> None:
        """Policy and Conductor as they are now, in Hugging Face layout."""
        ray.get(self.workers.policy.async_run_method("export", folder.resolve() / "model"))
        self.save_conductor(folder / "conductor")

    def record(self, step: int, scored: Scored, metrics: dict[str, float]) -> None:
        self.run_dir.write_rollouts(step, scored)
        self.log(step, metrics)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """A line of metrics.jsonl, and the same to the loggers."""
        self.run_dir.append_metrics({"step": step} | metrics)
        self.loggers.log(step, metrics)

    def _evaluate_between_steps(self, step: int) -> Summary | None:
        """With a line of its own in metrics.jsonl."""
        with self.kept(step):
            summary = self._evaluate(step)
        if summary is not None:
            metrics = evaluation_metrics(summary)
            self.log(step, metrics)
            if step > 0:
                self.keep_best(step, metrics)
        return summary

    @staticmethod
    def is_due(step: int, every: int, last: int | None = None) -> bool:
        """Whether something that happens every so many steps (-1: never) happens now, or at the last step."""
        return step == last or (every > 0 and step % every == 0)

    def _evaluate(self, step: int) -> Summary | None:
        return self.evaluator.evaluate(step) if self.evaluator is not None else None
