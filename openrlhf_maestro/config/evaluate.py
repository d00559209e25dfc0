"""The configuration of `maestro evaluate`: a model, prompts, and how its responses are judged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from openrlhf_maestro.config.fields import OPENRLHF, PAPER, Section, changed, option, section
from openrlhf_maestro.config.prompts import PromptSection
from openrlhf_maestro.config.schema import BUNDLED_TASKS
from openrlhf_maestro.config.sections import DataSection, Device, ParamDtype
from openrlhf_maestro.config.verdicts import JudgeVerdictSection, ReferenceVerdictSection

EvaluationKind = Literal["rule", "judge", "reference", "pairwise", "none"]


class EvaluateRunSection(Section):
    """The evaluation itself: its name, device and trust."""

    name: str = option("evaluation", "name of the evaluation; the default folder is evaluations/<name>", min_length=1)
    resume: Literal["auto", "never"] = option(
        "auto", "auto: go on with what is in output_dir; never: move it aside and start anew"
    )
    device: Device = option("auto", "where the model runs; auto: cuda where there is one, else cpu")
    trust_remote_code: bool = option(False, "let Hugging Face repositories run their own code")
    assets_dir: str = option("assets", "folder of the bundled tasks and models, made on first use")


class EvaluateModelSection(Section):
    """The model that is evaluated."""

    name_or_path: str = option(..., "Hugging Face name or folder, or bundled:policy; short: --model")


class EvaluateDataSection(PromptSection):
    """The prompts, their reference answers and how they are shown to the model."""

    dataset: str = option(
        ..., "JSONL, CSV, parquet, a folder or a hub name; several by commas; or bundled:tasks; short: --data"
    )
    split: str = option("test", "split to evaluate on")
    cluster_key: str = option(
        "cluster", "column, or key in the column `meta`, that names what rows belong together; they may lack it"
    )
    max_len: int | None = option(
        None, "longest prompt + response; null: as many positions as the model has", unit="tokens", ge=2
    )
    max_samples: int = option(100_000_000, "evaluate on at most this many rows", unit="rows", ge=1)
    max_dropped_rate: float = option(
        0.0, "stop when more rows than this have no reference or are too long", unit="share", ge=0, le=1
    )

    def as_prompts(self) -> DataSection:
        """The same in the words of the section that prompts are read by."""
        shared = set(type(self).model_fields) & set(DataSection.model_fields) - {"max_len"}
        return DataSection.model_validate(
            {name: getattr(self, name) for name in shared}
            | {"prompt_dataset": self.dataset, "prompt_split": self.split}
        )


class GenerationSection(Section):
    """Sampling of the responses."""

    n_samples_per_prompt: int = option(1, "responses a prompt", unit="responses", ge=1)
    temperature: float = option(0.8, "sampling temperature; 0: greedy", source=PAPER, ge=0)
    top_p: float = option(1.0, "share of the probability that is sampled from", gt=0, le=1)
    max_new_tokens: int = option(1024, "longest response", unit="tokens", source=f"{PAPER}, Table 7", ge=1)
    seed: int = option(42, "every response has a seed of its own that follows from it", ge=0)


class EvaluateVllmSection(Section):
    """The engine."""

    tensor_parallel_size: int = option(1, "GPUs that share the model", source=OPENRLHF, ge=1)
    param_dtype: ParamDtype = option("auto", "auto: bf16 on cuda, fp32 on a CPU")
    gpu_memory_utilization: float = option(0.9, "share of a GPU's memory for the engine", gt=0, le=1)
    enforce_eager: bool = option(False, "no CUDA graphs", source=OPENRLHF)
    enable_prefix_caching: bool = option(False, "reuse the key-value cache of common prefixes", source=OPENRLHF)
    cpu_kvcache_space: int = option(1, "key-value cache on a CPU", unit="GiB", ge=1)


class EvaluateVerdictSection(Section):
    """Who judges the responses."""

    kind: EvaluationKind | None = option(
        None,
        "rule: the bundled tasks' checkers; judge: a language model, against the reference; reference: closeness to "
        "the reference; pairwise: a language model, against another model's responses; none: responses only; null: "
        "pairwise with verdict.against, judge with judge.model, rule for bundled:tasks",
    )
    against: str | None = option(None, "pairwise: folder of the evaluation of the other model on the same rows")


class EvaluateConfig(Section):
    """Everything `maestro evaluate` reads."""

    shorthands: ClassVar[dict[str, str]] = {"model": "model.name_or_path", "data": "data.dataset"}

    output_dir: str | None = option(None, "folder of the evaluation; default evaluations/<run.name>")
    run: EvaluateRunSection = section(EvaluateRunSection)
    model: EvaluateModelSection
    data: EvaluateDataSection
    generation: GenerationSection = section(GenerationSection)
    vllm: EvaluateVllmSection = section(EvaluateVllmSection)
    verdict: EvaluateVerdictSection = section(EvaluateVerdictSection)
    judge: JudgeVerdictSection = section(JudgeVerdictSection)
    reference: ReferenceVerdictSection = section(ReferenceVerdictSection)

    @property
    def folder(self) -> Path:
        return Path(self.output_dir or Path("evaluations") / self.run.name)

    @property
    def kind(self) -> EvaluationKind:
        """The verdict's kind, found from the other options where it is not set."""
        if self.verdict.kind is not None:
            return self.verdict.kind
        if self.verdict.against is not None:
            return "pairwise"
        return "judge" if self.judge.model is not None else "rule"

    @property
    def needs_reference(self) -> bool:
        return self.kind in ("rule", "judge", "reference")

    @model_validator(mode="after")
    def _combination_can_work(self) -> EvaluateConfig:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        kind = self.kind
        if kind == "rule" and self.data.dataset != BUNDLED_TASKS:
            yield (
                f"verdicts by rule exist for {BUNDLED_TASKS} only, and data.dataset is {self.data.dataset}. Give a "
                "judge (--judge.model), compare with the references (--verdict.kind reference), or only write the "
                "responses (--verdict.kind none)."
            )
        if self.needs_reference and self.data.label_key is None:
            yield (
                f"verdict.kind: {kind} needs reference answers, and data.label_key is null: set it to their column, or "
                "verdict.kind to none."
            )
        if kind == "pairwise" and self.verdict.against is None:
            yield "verdict.kind: pairwise needs another model's evaluation: set verdict.against to its folder."
        yield from self.judge.problems(kind, "judge")
        if self.data.max_len is not None and self.data.max_len <= self.generation.max_new_tokens:
            yield (
                f"data.max_len ({self.data.max_len}) leaves no room for a prompt beside generation.max_new_tokens "
                f"({self.generation.max_new_tokens}). Raise data.max_len."
            )

    def notes(self) -> list[str]:
        """Options that were set but have no effect in this combination, one sentence each."""
        kind = self.kind
        found = [
            f"{name}.{field} has no effect with verdict.kind: {kind}."
            for name, part, used in (
                ("judge", self.judge, kind in ("judge", "pairwise")),
                ("reference", self.reference, kind == "reference"),
            )
            if not used
            for field in sorted(changed(part))
        ]
        if self.verdict.against is not None and kind != "pairwise":
            found.append(f"verdict.against has no effect with verdict.kind: {kind}.")
        if kind == "reference" and self.reference.metric == "exact" and self.reference.threshold is not None:
            found.append("reference.threshold has no effect with reference.metric: exact.")
        if kind in ("judge", "pairwise") and self.judge.temperature == 0 and self.judge.votes > 1:
            found.append("judge.votes are all the same with judge.temperature: 0: one would do.")
        elif kind in ("judge", "pairwise") and self.judge.seed is None and self.judge.votes > 1:
            found.append("judge.votes are equal requests with judge.seed: null: a cache may answer them as one.")
        if self.generation.temperature == 0 and self.generation.n_samples_per_prompt > 1:
            found.append("generation.n_samples_per_prompt are all the same with generation.temperature: 0.")
        if self.generation.temperature == 0:
            found += [
                f"generation.{field} has no effect with generation.temperature: 0."
                for field in sorted(changed(self.generation) & {"seed", "top_p"})
            ]
        if self.data.enable_thinking is not None and not self.data.apply_chat_template:
            found.append("data.enable_thinking has no effect with data.apply_chat_template: false.")
        return found

    def verdict_settings(self) -> dict[str, Any]:
        """What two evaluations have in common where their verdicts can be compared: no address, no key."""
        kind = self.kind
        settings: dict[str, Any] = {"kind": kind}
        if kind == "reference":
            settings |= {"metric": self.reference.metric, "threshold": self.reference.threshold}
        if kind in ("judge", "pairwise"):
            judge = self.judge
            settings |= {
                "model": judge.model,
                "prompt": judge.prompt,
                "by_datasource": {source: part.prompt for source, part in sorted(judge.by_datasource.items())},
                "votes": judge.votes,
                "temperature": judge.temperature,
            }
        return settings
