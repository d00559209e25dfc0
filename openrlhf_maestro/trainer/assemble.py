"""Puts a controller together from a configuration and started workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray

from openrlhf_maestro.conductor import ConductorSettings, Orchestrator, make_orchestrator
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.data.prompts import PromptLoader, PromptSet
from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.rollout.sampler import Sampler
from openrlhf_maestro.trainer.best import BestModel
from openrlhf_maestro.trainer.checkpoint import load_checkpoint
from openrlhf_maestro.trainer.collector import Collector
from openrlhf_maestro.trainer.controller import LOGPROB_DIFF_LIMITS, Controller
from openrlhf_maestro.trainer.diagnostics import collapse_watch
from openrlhf_maestro.trainer.evaluation import Evaluator
from openrlhf_maestro.trainer.experience import ExperienceMaker
from openrlhf_maestro.trainer.measure import ModelCalls
from openrlhf_maestro.trainer.run_dir import RunDir
from openrlhf_maestro.trainer.scoring import BackgroundScoring
from openrlhf_maestro.trainer.sync import WeightSync
from openrlhf_maestro.trainer.workers import Workers
from openrlhf_maestro.upstream.device import param_dtype
from openrlhf_maestro.upstream.options import openrlhf_arguments

if TYPE_CHECKING:
    from openrlhf_maestro.trainer.run import Inputs


def assemble(
    config: MaestroConfig,
    device: str,
    inputs: Inputs,
    loader: PromptLoader,
    held_out: PromptSet | None,
    workers: Workers,
    tokenizer: Any,
) -> Controller:
    """A controller that is ready for its first step, at the checkpoint's state where there is one."""
    run_dir, components, checkpoint = inputs.run_dir, inputs.components, inputs.checkpoint
    orchestrator = _orchestrator(config, workers)
    sync = WeightSync(config, device, workers)
    if checkpoint is not None:
        load_checkpoint(checkpoint, workers, orchestrator)
        sync.to_engines()
    sampler = Sampler(
        workers.engines,
        seed=config.train.seed,
        max_new_tokens=config.rollout.max_new_tokens,
        sleeping=config.vllm.enable_sleep,
    )
    maker = ExperienceMaker(
        config,
        ModelCalls(config, workers, tokenizer, openrlhf_arguments(config, device)),
        components,
        BackgroundScoring(components),
        orchestrator,
    )
    drawn = checkpoint.batches_drawn if checkpoint is not None else 0
    limit = config.run.max_logprob_diff or LOGPROB_DIFF_LIMITS[param_dtype(config.ds.param_dtype, device)]
    evaluator = None
    if held_out is not None:
        evaluator = Evaluator(config.eval, held_out, sampler, tokenizer, run_dir, inputs.verdicts)
    return Controller(
        config=config,
        run_dir=run_dir,
        workers=workers,
        collector=Collector(config, loader, sampler, maker, tokenizer, drawn),
        orchestrator=orchestrator,
        sync=sync,
        evaluator=evaluator,
        logprob_diff_limit=limit,
        watch=collapse_watch(config),
        best=_best(config, run_dir, checkpoint.step if checkpoint is not None else 0),
        loggers=inputs.loggers,
        stop=inputs.stop,
    )


def _best(config: MaestroConfig, run_dir: RunDir, done: int) -> BestModel | None:
    """Where there are several evaluations to choose from."""
    evaluated = config.eval.dataset is not None and config.eval.steps > 0
    wanted = config.ckpt.best_metric_key != "none"
    return BestModel(run_dir, config.ckpt.best_metric_key, done) if evaluated and wanted else None


def _orchestrator(config: MaestroConfig, workers: Workers) -> Orchestrator:
    section, names = config.conductor, config.component_names
    settings = None
    if section.kind == "conductor":
        settings = ConductorSettings(
            hidden_size=ray.get(workers.policy.async_run_method("hidden_size"))[0],
            temperature=section.temperature,
            min_prob=section.min_prob,
            learn_temperature=section.learn_temperature,
            lr=section.lr,
            update_every=section.update_steps,
            entropy_coef=section.entropy_coef,
            emphasis=section.emphasis,
            keep_truncated=section.keep_truncated,
            credit=section.credit,
            schedule=section.schedule,
            pairwise_coef=section.pairwise_coef,
            scale_rewards=config.objective.scale_rewards,
            context_layer=section.context_layer,
            context_pooling=section.context_pooling,
            init_from=section.init_from,
            freeze=section.freeze,
        )
    fixed = [section.weights[name] for name in names] if section.weights else None
    try:
        return make_orchestrator(
            section.kind, names, settings=settings, component=section.component, fixed_weights=fixed
        )
    except ValueError as error:  # a Conductor of another policy or other rewards
        raise ConfigError(f"conductor.init_from: {section.init_from} cannot be used. {error}") from error
