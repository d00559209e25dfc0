"""One evaluation from a configuration to a summary: rows checked, responses sampled, verdicts given, tables written."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from openrlhf_maestro.config.evaluate import EvaluateConfig
from openrlhf_maestro.data.prompts import Prompt, PromptSet, fit_prompts, load_prompts
from openrlhf_maestro.data.rendering import prompt_renderer
from openrlhf_maestro.errors import ConfigError, DataError, MaestroError, RunError
from openrlhf_maestro.evaluation import Item, Verdict, Verdicts, make_verdicts
from openrlhf_maestro.evaluation.log import AppendLog, Row
from openrlhf_maestro.evaluation.pairwise import PairwiseVerdicts
from openrlhf_maestro.evaluation.results import RESULTS, Result, write_results
from openrlhf_maestro.evaluation.verdicts import VoteCounts, Watch
from openrlhf_maestro.rewards.service import excerpt
from openrlhf_maestro.rollout.offline import OfflineEngine, Request, engine_arguments, output_to, prepare_environment
from openrlhf_maestro.rollout.responses import response_seed
from openrlhf_maestro.trainer.bundled import bundled_dataset, bundled_policy
from openrlhf_maestro.trainer.console import CONSOLE
from openrlhf_maestro.trainer.evaluation_dir import (
    EvaluationDir,
    Wanted,
    check_responses,
    check_same_questions,
    other_responses,
)
from openrlhf_maestro.trainer.evaluation_summary import conclude
from openrlhf_maestro.upstream.device import choose_device, param_dtype

PURPOSE = "evaluate"


def evaluate(config: EvaluateConfig) -> Path:
    """Evaluate, and return the folder with what was found. What is there already is not done again.

    Raises:
        UserError: configuration or data cannot work; found before a model is loaded.
        RunError: a failure while running; what was done until then is kept.
    """
    device = choose_device(config.run.device)
    _check_model(config, device)
    prompts = _load(config)
    folder = EvaluationDir(config.folder)
    with _Bar() as bar:
        others = other_responses(Path(config.verdict.against or "")) if config.kind == "pairwise" else {}
        verdicts = _make_verdicts(config, others, folder.path, bar.show_votes)
        with _status(CONSOLE, "preparing"):  # a minute where a bundled model is made
            model = _model(config)
        prepare_environment(config, device)
        wanted, max_model_len = _wanted(config, prompts, model)
        if config.kind == "pairwise":
            check_same_questions(others, wanted, config.verdict.against or "")
        moved = folder.start(config, model, device)
        if moved is not None:
            CONSOLE.print(f"the earlier evaluation was moved to {moved}/", soft_wrap=True, markup=False)
        rows = _respond(config, model, device, max_model_len, wanted, folder)
        if verdicts is None:
            CONSOLE.print(f"{len(rows)} responses, without verdicts: {folder.responses}", soft_wrap=True, markup=False)
            return folder.path
        found = verdicts([_item(row) for row in rows])
    results = [_result(row, verdict) for row, verdict in zip(rows, found, strict=True)]
    write_results(folder.path / RESULTS, results)
    conclude(config, folder, results, verdicts)
    return folder.path


# ── what is evaluated ──


def _check_model(config: EvaluateConfig, device: str) -> None:
    name = config.model.name_or_path
    path = Path(name).expanduser()
    if (path.is_dir() or name.startswith((".", "/", "~"))) and not (path / "config.json").is_file():
        raise ConfigError(f"model.name_or_path: {name} is not a model folder (it has no config.json).")
    if device == "cpu" and param_dtype(config.vllm.param_dtype, device) == "bf16":
        raise ConfigError("vllm.param_dtype: vLLM's bf16 attention dies on some CPUs. Use fp32 or auto on a CPU.")


def _model(config: EvaluateConfig) -> str:
    """Folder or name of the model."""
    model = bundled_policy(config.model.name_or_path, config.run.assets_dir)
    folder = Path(model).expanduser()
    return str(folder) if folder.is_dir() else model


def _load(config: EvaluateConfig) -> PromptSet:
    """The rows, before a tokenizer is loaded."""
    data = config.data
    prompts = load_prompts(
        data.as_prompts(),
        dataset=bundled_dataset(data.dataset, data.split, config.run.assets_dir),
        split=data.split,
        needs_reference=config.needs_reference,
        needing=f"a verdict by {config.kind}",
        max_samples=data.max_samples,
        render=None,
        max_prompt_tokens=0,
    )
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        other = first.setdefault(prompt.id, prompt)
        if other is not prompt:
            raise DataError(
                f"row {other.row} of {other.source} and row {prompt.row} of {prompt.source} have the same id, "
                f"{prompt.id}, by which responses are told apart. Give each row its own."
            )
    named = set(config.judge.by_datasource) if config.kind in ("judge", "pairwise") else set()
    there = {prompt.datasource for prompt in prompts}
    if named - there:
        raise ConfigError(
            f"judge.by_datasource names {min(named - there)}, and no row is of that data set. There are "
            f"{', '.join(sorted(there))}."
        )
    return prompts


def _wanted(config: EvaluateConfig, prompts: PromptSet, model: str) -> tuple[list[Wanted], int]:
    """Every response that is wanted, and the most tokens of a prompt with its response."""
    from transformers import AutoConfig, AutoTokenizer

    trust = config.run.trust_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust)
        architecture = AutoConfig.from_pretrained(model, trust_remote_code=trust).get_text_config()
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"model.name_or_path: {model} cannot be loaded: {reason}") from error
    positions = config.data.max_len or getattr(architecture, "max_position_embeddings", None)
    if positions is None:
        raise ConfigError(f"data.max_len: {model} does not say how many positions it has. Set it.")
    new_tokens = config.generation.max_new_tokens
    if positions <= new_tokens:
        raise ConfigError(
            f"generation.max_new_tokens ({new_tokens}) leaves no room for a prompt: {config.model.name_or_path} has "
            f"{positions} positions. Lower it."
        )
    data = config.data.as_prompts()
    fitted = fit_prompts(
        prompts,
        data,
        render=prompt_renderer(tokenizer, data),
        max_prompt_tokens=positions - new_tokens,
        budget=f"the {positions} positions of the model, or data.max_len, less generation.max_new_tokens",
    )
    for reason, count in fitted.dropped.items():
        CONSOLE.print(f"{count} rows left out: {reason}")
    wanted = [
        Wanted(
            prompt,
            rendered,
            sample,
            prompt.cluster(config.data.cluster_key),
            response_seed(config.generation.seed, PURPOSE, 0, prompt.id, sample),
        )
        for prompt in fitted
        for rendered in (tokenizer.decode(prompt.token_ids),)
        for sample in range(config.generation.n_samples_per_prompt)
    ]
    return wanted, max(len(prompt.token_ids) for prompt in fitted) + new_tokens


# ── its responses ──


def _respond(
    config: EvaluateConfig, model: str, device: str, max_model_len: int, wanted: Sequence[Wanted], folder: EvaluationDir
) -> list[Row]:
    """The row of every wanted response, from the file or sampled now."""
    with AppendLog(folder.responses) as log:
        found = check_responses(log.rows, wanted, folder.responses)
        absent = [one for one in wanted if one.key not in found]
        if len(absent) < len(wanted):
            CONSOLE.print(f"{len(wanted) - len(absent)} of {len(wanted)} responses are there already", soft_wrap=True)
        if absent:
            # Closed before an error is shown: until then what is printed goes to the engine's log.
            with closing(_sampled(config, model, device, max_model_len, absent, folder)) as sampled:
                for row in sampled:
                    log.append(row)
                    found[row["key"]] = row
        return folder.order_responses(wanted, found)


def _sampled(
    config: EvaluateConfig, model: str, device: str, max_model_len: int, wanted: Sequence[Wanted], folder: EvaluationDir
) -> Generator[Row, None, None]:
    """The rows of new responses, as they finish."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=config.run.trust_remote_code)
    generation = config.generation
    sampling = {
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "max_tokens": generation.max_new_tokens,
    }
    by_key = {one.key: one for one in wanted}
    requests = [Request(one.key, one.prompt.token_ids, one.seed) for one in wanted]
    with output_to(folder.log) as terminal, _failing(model, folder.log):
        console = Console(file=terminal, highlight=False)
        with _status(console, f"loading {config.model.name_or_path}"):
            engine = OfflineEngine(engine_arguments(config, model, device, max_model_len))
        with engine, _progress("responses", console) as progress:
            task = progress.add_task("responses", total=len(requests))
            for key, response in engine.generate(requests, sampling):
                text = tokenizer.decode(response.text_token_ids)
                yield by_key[key].row(text, truncated=response.truncated, tokens=len(response.token_ids))
                progress.advance(task)


@contextmanager
def _failing(model: str, log: Path) -> Iterator[None]:
    """vLLM fails with errors of many types, and says why in its log."""
    try:
        yield
    except (MaestroError, KeyboardInterrupt, GeneratorExit):
        raise
    except Exception as error:
        traceback.print_exc()  # into the log
        reason = excerpt(str(error)) or type(error).__name__
        raise RunError(f"vLLM failed with {model}: {reason} Its output: {log}") from error


# ── its verdicts ──


def _make_verdicts(config: EvaluateConfig, others: Mapping[str, Row], folder: Path, watch: Watch) -> Verdicts | None:
    if config.kind == "none":
        return None
    if config.kind == "pairwise":
        texts = {key: str(row["response"]) for key, row in others.items()}
        return PairwiseVerdicts(config.judge, folder, texts, watch=watch)
    return make_verdicts(config.kind, config.judge, config.reference, folder, watch=watch)


def _item(row: Row) -> Item:
    return Item(row["key"], row["datasource"], row["question"], row["reference"], row["response"])


def _result(row: Row, verdict: Verdict) -> Result:
    return Result(
        key=row["key"],
        id=row["id"],
        sample=row["sample"],
        datasource=row["datasource"],
        cluster=row["cluster"],
        right=verdict.right,
        score=verdict.score,
        votes=verdict.votes,
        problem=verdict.problem,
    )


class _Bar:
    """The progress of a judge, shown once there is one."""

    def __init__(self) -> None:
        self._progress = _progress("votes", CONSOLE)
        self._task: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show_votes(self, counts: VoteCounts) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("votes", total=counts.total, completed=counts.reused)
        self._progress.update(self._task, completed=counts.done)


def _status(console: Console, text: str) -> AbstractContextManager[object]:
    """A spinner; in a log file it would be an empty line."""
    return console.status(text) if console.is_terminal else nullcontext()


def _progress(what: str, console: Console) -> Progress:
    columns = (TextColumn(what), MofNCompleteColumn(), BarColumn(), _Speed(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class _Speed(TextColumn):
    """Units a second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Any:
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")
