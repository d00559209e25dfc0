"""One run from a configuration to a trained model: data checked, models made, actors started, loop, page."""

from __future__ import annotations

import os
import re
import signal
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenacity import retry, retry_if_exception_message, stop_after_attempt

from openrlhf_maestro.conductor import Conductor
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.data.prompts import OVERALL, PromptLoader, PromptSet, fit_prompts, load_prompts
from openrlhf_maestro.data.rendering import prompt_renderer
from openrlhf_maestro.errors import ConfigError, MaestroError, RunError
from openrlhf_maestro.evaluation import Verdicts, make_verdicts
from openrlhf_maestro.launch import ray_settings, worker_environment
from openrlhf_maestro.rewards import Component, Context, make_components
from openrlhf_maestro.trainer.bundled import bundled_dataset, make_models, missing_models
from openrlhf_maestro.trainer.cleanup import shared_memory_in_use
from openrlhf_maestro.trainer.console import CONSOLE, held_out_table
from openrlhf_maestro.trainer.loggers import Loggers, make_loggers
from openrlhf_maestro.trainer.resume import Checkpoint, find_checkpoint
from openrlhf_maestro.trainer.run_dir import RunDir
from openrlhf_maestro.trainer.stopping import SIGNALS, StopRequest, ignored
from openrlhf_maestro.upstream.device import check_device_options, choose_device

# Given to vLLM to end its own processes before Ray kills its actor.
SHUTDOWN_S = 10


@dataclass(frozen=True)
class Data:
    """Prompts of a run, not yet tokenised."""

    train: PromptSet
    held_out: PromptSet | None


@dataclass(frozen=True)
class Inputs:
    """What a run is made of besides its models; all of it checked before one is loaded."""

    run_dir: RunDir
    data: Data
    components: list[Component]
    verdicts: Verdicts
    checkpoint: Checkpoint | None
    loggers: Loggers
    stop: StopRequest


def train(config: MaestroConfig) -> Path:
    """Train, and return the path of the run's page.

    Raises:
        UserError: configuration or data cannot work; found before a model is loaded.
        RunError: a failure while running; the traceback is in logs/controller.log.
        KeyboardInterrupt: a signal came before the first step, or a second one.
    """
    with StopRequest() as stop:
        return _run(config, stop)


def _run(config: MaestroConfig, stop: StopRequest) -> Path:
    check_model_folder(config)
    data = check_data(config)
    device = choose_device(config.run.device)
    check_device_options(config, device)
    run_dir = RunDir(config.run_dir)
    context = Context(config.rollout.max_new_tokens, run_dir.path)
    components = make_components(config.rewards.components, context, config.rewards.normalisation)
    verdicts = make_verdicts(config.eval.verdict, config.eval.judge, config.eval.reference, run_dir.evaluations)
    resolved = _make_models(config)
    checkpoint = find_checkpoint(resolved, run_dir.checkpoints)
    if checkpoint is None:
        check_initial_conductor(config, run_dir)
    # The run's config.yaml is what was asked for, so that it can be used again elsewhere.
    continues = checkpoint is not None and checkpoint.is_in(run_dir.checkpoints)
    moved = run_dir.start(config, checkpoint.step if checkpoint is not None and continues else None)
    if moved is not None:
        CONSOLE.print(f"an earlier run of this name was moved to {moved}/", soft_wrap=True)
    try:
        loggers = make_loggers(config, run_dir.path, checkpoint.step if checkpoint is not None else 0)
        try:
            return _train(resolved, device, Inputs(run_dir, data, components, verdicts, checkpoint, loggers, stop))
        finally:
            loggers.close()
    except (MaestroError, KeyboardInterrupt) as error:
        if error.__cause__ is not None:  # a function of the user's, a server
            (run_dir.logs / "controller.log").write_text(traceback.format_exc())
        raise
    except Exception as error:
        # Whatever fails in a worker arrives here as one of many types of Ray: shown short, kept whole.
        (run_dir.logs / "controller.log").write_text(traceback.format_exc())
        raise RunError(f"{_cause(error, run_dir.logs)} Traceback and workers' output: {run_dir.logs}/") from error


def _make_models(config: MaestroConfig) -> MaestroConfig:
    """The configuration with folders in place of bundled names, after making what is missing."""
    missing = missing_models(config)
    if not missing:
        return make_models(config)
    names, start_s = " and ".join(missing), time.monotonic()
    with CONSOLE.status(f"making {names}, once (about a minute)"):
        resolved = make_models(config)
    CONSOLE.print(
        f"made {names} in {time.monotonic() - start_s:.0f} s, kept in {config.run.assets_dir}/", soft_wrap=True
    )
    return resolved


def check_model_folder(config: MaestroConfig) -> None:
    """Refuse a model path that is meant as a folder and is none."""
    names = {
        "actor.model_name_or_path": config.actor.model_name_or_path,
        "reward.model_name_or_path": config.reward.model_name_or_path or "",
    }
    for option, name in names.items():
        is_folder = option.startswith("actor") and config.actor.random_init is not None
        is_folder = is_folder or name.startswith((".", "/", "~"))
        if is_folder and not (Path(name).expanduser() / "config.json").is_file():
            raise ConfigError(f"{option}: {name} is not a model folder (it has no config.json).")


def check_data(config: MaestroConfig) -> Data:
    """Read and check the rows of training and evaluation; no tokenizer is needed for that."""
    # An anchor scores rows that have what it needs; the perplexity is measured on every row.
    reading = [part for part in config.rewards.components if not part.anchor or part is config.perplexity]
    needing = next((part.label for part in reading if part.needs_reference), "")
    training = load_prompts(
        config.data,
        dataset=bundled_dataset(config.data.prompt_dataset, config.data.prompt_split, config.run.assets_dir),
        split=config.data.prompt_split,
        needs_reference=bool(needing),
        needing=f"the `{needing}` component",
        max_samples=config.data.max_samples,
        render=None,
        max_prompt_tokens=config.max_prompt_tokens,
    )
    _check_datasources(config, training)
    # Too few rows for one step are found here as well.
    _loader(training, config)
    if config.eval.dataset is None:
        return Data(training, None)
    held_out = load_prompts(
        config.data,
        dataset=bundled_dataset(config.eval.dataset, config.eval.split, config.run.assets_dir),
        split=config.eval.split,
        needs_reference=True,
        needing=f"a verdict by {config.eval.verdict}",
        max_samples=config.eval.max_samples,
        render=None,
        max_prompt_tokens=config.max_prompt_tokens,
    )
    _check_evaluated_datasources(config, held_out)
    return Data(training, held_out)


def _check_evaluated_datasources(config: MaestroConfig, held_out: PromptSet) -> None:
    """Refuse a metric, or prompts of a judge, for a data set that no evaluated row is of."""
    there = sorted({prompt.datasource for prompt in held_out})
    key = config.ckpt.best_metric_key
    if key.startswith("eval/") and key.split("/", 1)[1].rpartition("/")[0] not in (*there, OVERALL):
        raise ConfigError(
            f"ckpt.best_metric_key: {key} is of a data set that no evaluated row is of. There are {', '.join(there)}."
        )
    for source in config.eval.judge.by_datasource if config.eval.verdict == "judge" else ():
        if source not in there:
            raise ConfigError(
                f"eval.judge.by_datasource names {source}, and no evaluated row is of that data set. There are "
                f"{', '.join(there)}."
            )


def check_initial_conductor(config: MaestroConfig, run_dir: RunDir) -> None:
    """Refuse a conductor.init_from that was made for other rewards or another context, or is about to be moved away."""
    section = config.conductor
    if section.kind != "conductor" or section.init_from is None:
        return
    folder = Path(section.init_from)
    if folder.resolve().is_relative_to(run_dir.path.resolve()):
        raise ConfigError(
            f"conductor.init_from: {folder} is in the run directory of this run, {run_dir.path}, which is moved aside "
            "when the run starts. Give the new run another run.name."
        )
    try:
        if not folder.is_dir():
            raise ValueError("there is no such folder")
        conductor = Conductor.from_pretrained(str(folder))
        conductor.check(conductor.hidden_size, config.component_names, section.context_layer, section.context_pooling)
    except (OSError, ValueError) as error:
        raise ConfigError(f"conductor.init_from: {folder} cannot be used: {error}") from error


def _check_datasources(config: MaestroConfig, prompts: PromptSet) -> None:
    """Refuse parameters for a data source that no row is of: they would have no effect."""
    there = sorted({prompt.datasource for prompt in prompts})
    for component in config.rewards.components:
        for source in getattr(component, "by_datasource", {}):
            if source not in there:
                raise ConfigError(
                    f"the `{component.label}` component: by_datasource names {source}, and no row is of that data "
                    f"source. There are {', '.join(there)}."
                )


def _loader(prompts: PromptSet, config: MaestroConfig) -> PromptLoader:
    train = config.train
    return PromptLoader(prompts, config.rollout.batch_size, train.seed, train.num_episodes, config.data.probs)


def _train(config: MaestroConfig, device: str, inputs: Inputs) -> Path:
    run_dir = inputs.run_dir
    with CONSOLE.status("starting Ray, vLLM and DeepSpeed") as status:
        start_s = time.monotonic()
        cluster = _Cluster(config, device)
        try:
            controller, start, total = cluster.build(inputs)
            status.stop()
            CONSOLE.print(
                f"ready after {time.monotonic() - start_s:.0f} s; run directory {run_dir.path}/", soft_wrap=True
            )
            inputs.stop.install()
            outcome = controller.train(start, total)
            if outcome.stopped_after is None:
                cluster.finish(controller)
            inputs.stop.end_steps()
        finally:
            with ignored(*SIGNALS):  # the run is ending, and its processes have to be ended first
                cluster.stop()
    from openrlhf_maestro.report import write_report

    page = write_report(run_dir.path)
    if outcome.stopped_after is not None:
        CONSOLE.print(
            f"stopped after step {outcome.stopped_after} of {total} as asked; --run.resume auto goes on from there\n"
            f"page   {page}",
            soft_wrap=True,
        )
        return page
    if outcome.before is not None and outcome.after is not None:
        CONSOLE.print(held_out_table(outcome.before, outcome.after))
    CONSOLE.print(f"model  {run_dir.model}/\npage   {page}", soft_wrap=True)
    return page


class _Cluster:
    """Ray and the actors of one run. Heavy modules are imported while Ray starts."""

    def __init__(self, config: MaestroConfig, device: str) -> None:
        self.config = config
        self.device = device
        # What vLLM warns of while it is imported here, the workers write to their logs.
        os.environ.update(worker_environment(config, self.device) | {"VLLM_LOGGING_LEVEL": "ERROR"})
        self.sync: Any = None
        self.scoring: Any = None
        self.engines: list[Any] = []
        # Ray's processes die with the thread that started them: it must be this one.
        with ThreadPoolExecutor(max_workers=1) as pool:
            importing = pool.submit(_import_heavy_modules)
            # Slurm sends SIGUSR1 to every process of a step: Ray's and its workers' are not to die of it.
            with ignored(signal.SIGUSR1):
                _start_ray(ray_settings(config, self.device))
            importing.result()

    def build(self, inputs: Inputs) -> tuple[Any, int, int]:
        """Start the actors. Returns the controller, the steps done before and the steps in all."""
        from transformers import AutoTokenizer

        from openrlhf_maestro.trainer.assemble import assemble
        from openrlhf_maestro.trainer.workers import start_workers

        config = self.config
        tokenizer = AutoTokenizer.from_pretrained(config.actor.model_name_or_path)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        prompts = _tokenised(inputs.data.train, config, tokenizer)
        loader = _loader(prompts, config)
        total = len(loader) if config.run.max_steps < 0 else min(config.run.max_steps, len(loader))
        start = inputs.checkpoint.step if inputs.checkpoint is not None else 0
        updates_a_step = config.responses_per_step // config.train.batch_size * config.train.max_epochs
        workers = start_workers(config, self.device, total * updates_a_step)
        self.engines = workers.engines
        unseen = inputs.data.held_out
        held_out = _tokenised(unseen, config, tokenizer) if unseen is not None else None
        controller = assemble(config, self.device, inputs, loader, held_out, workers, tokenizer)
        self.scoring = controller.collector.maker.scoring
        self.sync = controller.sync
        return controller, start, total

    def finish(self, controller: Any) -> None:
        """Write the final model and Conductor."""
        import ray

        ray.get(controller.workers.policy.async_save_model())
        controller.save_conductor(controller.run_dir.conductor)

    def stop(self) -> None:
        """Leave no process and no file in shared memory behind."""
        import ray

        try:
            if self.scoring is not None:
                self.scoring.close()
            if self.sync is not None:
                self.sync.close()
        finally:
            if ray.is_initialized():
                stopping = [engine.shutdown.remote() for engine in self.engines]
                if stopping:
                    ray.wait(stopping, num_returns=len(stopping), timeout=SHUTDOWN_S)
                left = shared_memory_in_use()
                ray.shutdown()
                for file in left:
                    file.unlink(missing_ok=True)


@retry(stop=stop_after_attempt(3), retry=retry_if_exception_message(match=".*timed out during startup.*"), reraise=True)
def _start_ray(settings: dict[str, Any]) -> None:
    """Ray gives its own processes 30 s to come up, which a busy machine can exceed; then it is started again."""
    import ray

    ray.shutdown()
    ray.init(**settings)


def _import_heavy_modules() -> None:
    from openrlhf_maestro.upstream.patches import prepare_process

    prepare_process()
    import openrlhf_maestro.trainer.assemble  # noqa: F401


def _tokenised(prompts: PromptSet, config: MaestroConfig, tokenizer: Any) -> PromptSet:
    render = prompt_renderer(tokenizer, config.data)
    fitted = fit_prompts(prompts, config.data, render=render, max_prompt_tokens=config.max_prompt_tokens)
    for reason, count in fitted.dropped.items():
        CONSOLE.print(f"{count} of {len(prompts) + sum(prompts.dropped.values())} rows left out: {reason}")
    return fitted


def _cause(error: BaseException, logs: Path) -> str:
    """The line that says what went wrong, without Ray's frames."""
    cause = getattr(error, "cause", None) or error
    if type(cause).__name__ == "EngineDeadError":
        return f"a vLLM engine died: {_last_error(logs)}"
    text = str(cause).strip() or type(cause).__name__
    return f"{type(cause).__name__}: {text.splitlines()[-1].strip()}"


def _last_error(logs: Path) -> str:
    """The last error that an engine's processes wrote; the exception that reaches us does not say."""
    found = "its log does not say why."
    for log in sorted(logs.glob("vllm_engine*.log")):
        for line in log.read_text(errors="replace").splitlines():
            match = re.search(r"\b(?!EngineDeadError)\w+Error: .*", line)
            found = match.group() if match else found
    return found
