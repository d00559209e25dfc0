"""The sections of a training configuration: OpenRLHF's names where it has them; each default stands here once."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

from pydantic import field_validator, model_validator

from openrlhf_maestro.config.components import (
    AnyComponent,
    ComponentSection,
    check_names_and_gates,
    paper_components,
)
from openrlhf_maestro.config.fields import OPENRLHF, PAPER, Section, changed, option, section
from openrlhf_maestro.config.prompts import PromptSection
from openrlhf_maestro.config.verdicts import JudgeVerdictSection, ReferenceVerdictSection, VerdictKind

Device = Literal["auto", "cpu", "cuda"]
ParamDtype = Literal["auto", "bf16", "fp32"]


class RunSection(Section):
    """The run itself: its name, folder, length and device."""

    name: str = option("maestro", "name of the run; the default folder is runs/<name>", min_length=1)
    dir: str | None = option(None, "run directory; default runs/<run.name> under the working directory")
    max_steps: int = option(
        -1, "stop after this many GRPO steps; -1: after train.num_episodes passes", unit="steps", ge=-1
    )
    resume: str = option(
        "auto", "auto: continue from the newest checkpoint of run.dir; a path: that one; never: start anew"
    )
    device: Device = option("auto", "where the models run; auto: cuda where there is one, else cpu")
    trust_remote_code: bool = option(False, "let Hugging Face repositories run their own code, in every process")
    assets_dir: str = option("assets", "folder of the bundled tasks and models, made on first use")
    max_logprob_diff: float | None = option(
        None,
        "stop when vLLM and the trainer disagree by more than this, mean over response tokens; "
        "default 1e-3 for fp32, 5e-2 for bf16",
        unit="nats",
        gt=0,
    )


class AdamSection(Section):
    """AdamW."""

    lr: float = option(1e-5, "learning rate", source=f"{PAPER}, Table 7", gt=0)
    betas: tuple[float, float] = option((0.9, 0.999), "decay rates of the two moments", source="Trainer default")
    eps: float = option(1e-8, "added to the denominator", source="Trainer default", gt=0)
    weight_decay: float = option(0.0, "decoupled weight decay", source="Trainer default", ge=0)


class ActorSection(Section):
    """The policy and its optimiser."""

    model_name_or_path: str = option(..., "Hugging Face name or folder, or bundled:policy")
    random_init: dict[str, Any] | None = option(
        None,
        "start from random weights of the architecture in that folder's config.json, with these of its values changed "
        "({} changes none)",
    )
    num_nodes: int = option(1, "nodes of the policy", source=OPENRLHF, ge=1)
    num_gpus_per_node: int = option(1, "ranks on a node (logical GPUs on a CPU)", ge=1)
    gradient_checkpointing_enable: bool = option(False, "recompute activations in the backward pass", source=OPENRLHF)
    gradient_checkpointing_reentrant: bool = option(False, "the older kind of checkpointing", source=OPENRLHF)
    adam: AdamSection = section(AdamSection)
    lr_scheduler: str = option("linear", "a transformers schedule", source=f"{PAPER}, Table 7")
    lr_warmup_ratio: float = option(0.0, "share of the updates used to warm up", source=f"{PAPER}, Table 7", ge=0, le=1)
    min_lr_ratio: float = option(
        0.1, "floor of the *_with_min_lr schedules, as a share of lr", source=OPENRLHF, ge=0, le=1
    )
    max_norm: float = option(1.0, "gradient clipping", unit="L2 norm", source="Trainer default", ge=0)
    eps_clip_low_high: tuple[float, float] = option(
        (0.2, 0.2), "the ratio is clipped to [1 - low, 1 + high]", source=f"{PAPER}, Table 7"
    )


class RefSection(Section):
    """The reference model of the KL term; started only where algo.kl.init_coef > 0."""

    num_nodes: int = option(1, "nodes of the reference", source=OPENRLHF, ge=1)
    num_gpus_per_node: int = option(1, "ranks on a node", ge=1)
    offload: bool = option(False, "keep its parameters in CPU memory between forwards", source=OPENRLHF)


class RewardSection(Section):
    """The preference model; started only where a `preference` component is configured."""

    model_name_or_path: str | None = option(None, "a Hugging Face sequence-classification model, or bundled:preference")
    num_nodes: int = option(1, "nodes of the preference model", source=OPENRLHF, ge=1)
    num_gpus_per_node: int = option(1, "ranks on a node", ge=1)
    offload: bool = option(False, "keep its parameters in CPU memory between forwards", source=OPENRLHF)
    zero_stage: Literal[0, 3] | None = option(
        None, "3: its ranks share out the parameters; 0: each holds the whole model; default 3 with ds.zero_stage: 3"
    )
    max_len: int = option(
        4096, "longest prompt + response it reads; a longer one is the response's fault", unit="its tokens", ge=1
    )


class VllmSection(Section):
    """The rollout engines."""

    num_engines: int = option(1, "vLLM engines", ge=1)
    tensor_parallel_size: int = option(1, "GPUs an engine", source=OPENRLHF, ge=1)
    sync_backend: str = option("nccl", "policy -> vLLM weights on CUDA; a CPU uses shared memory", source=OPENRLHF)
    sync_with_ray: bool = option(False, "send the weights over ray.util.collective", source=OPENRLHF)
    enable_prefix_caching: bool = option(False, "reuse the key-value cache of common prefixes", source=OPENRLHF)
    enforce_eager: bool = option(False, "no CUDA graphs", source=OPENRLHF)
    enable_sleep: bool = option(
        False, "free an engine's memory while the policy trains; needs train.colocate_all", source=OPENRLHF
    )
    gpu_memory_utilization: float = option(0.9, "share of a GPU's memory for an engine", gt=0, le=1)
    cpu_kvcache_space: int = option(1, "key-value cache of an engine on a CPU", unit="GiB", ge=1)


class TrainSection(Section):
    """Sizes of an update, the seed and the placement."""

    seed: int = option(42, "of prompts' order, sampling and the Conductor's draws", source=OPENRLHF, ge=0)
    batch_size: int = option(
        90, "responses an optimiser step", unit="responses", source=f"{PAPER}, Table 7: 18 prompts x 5", ge=1
    )
    micro_batch_size: int = option(1, "responses a rank trains on at a time", unit="responses", source=OPENRLHF, ge=1)
    dynamic_batch_enable: bool = option(
        False, "micro-batches by tokens instead of responses, of updates and of scoring", source=OPENRLHF
    )
    max_tokens_per_gpu: int = option(
        16192,
        "longest micro-batch of an update under train.dynamic_batch_enable, padding counted; "
        "ds.tensor_parallel_size GPUs together take that many times as much",
        unit="tokens",
        source=OPENRLHF,
        ge=1,
    )
    num_episodes: int = option(2, "passes over the prompts", source=f"{PAPER}, Table 7", ge=1)
    max_epochs: int = option(1, "passes over one rollout; 1: on-policy", source=PAPER, ge=1)
    colocate_all: bool = option(
        False, "policy, reference, preference model and engines share their GPUs", source=OPENRLHF
    )
    colocate_actor_ref: bool = option(False, "policy and reference share their GPUs", source=OPENRLHF)
    full_determinism_enable: bool = option(False, "deterministic kernels, at a cost in speed", source=OPENRLHF)
    cpu_threads_per_worker: int = option(1, "OMP threads of each worker on a CPU", unit="threads", ge=1)


class RolloutSection(Section):
    """Sampling of the responses."""

    batch_size: int = option(18, "prompts a step", unit="prompts", source=f"{PAPER}, Table 7", ge=1)
    n_samples_per_prompt: int = option(
        5, "responses a prompt, the group size G", unit="responses", source=f"{PAPER}, Table 7", ge=1
    )
    micro_batch_size: int = option(
        1, "responses a rank scores at a time, without gradients", unit="responses", source=OPENRLHF, ge=1
    )
    max_tokens_per_gpu: int | None = option(
        None, "the same for scoring; default train.max_tokens_per_gpu", unit="tokens", source=OPENRLHF, ge=1
    )
    max_new_tokens: int = option(1024, "longest response", unit="tokens", source=f"{PAPER}, Table 7", ge=1)
    temperature: float = option(0.8, "sampling temperature", source=PAPER, gt=0)


def listed(text: str) -> list[str]:
    """The parts of a text that are separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


class DataSection(PromptSection):
    """The prompts, their reference answers and how they are shown to the policy."""

    prompt_dataset: str = option(
        ..., "JSONL, CSV, parquet, a folder or a hub name; several by commas; or bundled:tasks"
    )
    prompt_probs: str | None = option(
        None,
        "share of each source of data.prompt_dataset in a pass, by commas, as in 0.7,0.3; null: every row of each",
        unit="share",
        source=OPENRLHF,
    )
    prompt_split: str = option("train", "split to train on", source=OPENRLHF)
    max_len: int = option(2048, "longest prompt + response", unit="tokens", source=OPENRLHF, ge=2)
    max_samples: int = option(100_000_000, "use at most this many rows", unit="rows", source=OPENRLHF, ge=1)
    max_dropped_rate: float = option(
        0.05, "stop when more rows than this have no reference or are too long", unit="share", ge=0, le=1
    )

    @model_validator(mode="after")
    def _a_share_for_each_source(self) -> DataSection:
        sources = listed(self.prompt_dataset)
        if self.probs is not None and len(self.probs) != len(sources):
            raise ValueError(
                f"prompt_probs has {len(self.probs)} shares for the {len(sources)} sources of prompt_dataset"
            )
        return self

    @property
    def probs(self) -> tuple[Fraction, ...] | None:
        """The shares of data.prompt_probs, exact, brought to sum 1. Raises ValueError where they are none."""
        if self.prompt_probs is None:
            return None
        try:
            shares = [Fraction(text) for text in listed(self.prompt_probs)]
        except (ValueError, ZeroDivisionError):
            shares = []
        if min(shares, default=Fraction(0)) <= 0:
            raise ValueError(f"prompt_probs {self.prompt_probs} should be numbers above 0 by commas, as in 0.7,0.3")
        return tuple(share / sum(shares) for share in shares)


class EvalSection(Section):
    """Verdicts on held-out prompts during training, before the first step and after the last."""

    dataset: str | None = option(None, "rows to evaluate on, like data.prompt_dataset; null: no evaluation")
    split: str = option("test", "split to evaluate on")
    steps: int = option(
        -1, "evaluate every this many steps; -1: only before and after", unit="steps", source=OPENRLHF, ge=-1
    )
    temperature: float = option(0.8, "sampling temperature of the evaluation; 0: greedy", ge=0)
    n_samples_per_prompt: int = option(1, "responses a prompt", unit="responses", ge=1)
    max_samples: int = option(100_000_000, "evaluate on at most this many prompts", unit="prompts", ge=1)
    verdict: VerdictKind = option(
        "rule", "who judges: rule: the bundled tasks' checkers; judge: a language model; reference: closeness to the "
        "reference answer",
    )  # fmt: skip
    judge: JudgeVerdictSection = section(JudgeVerdictSection)
    reference: ReferenceVerdictSection = section(ReferenceVerdictSection)

    def notes(self) -> list[str]:
        """Options that were set but have no effect, one sentence each."""
        if self.dataset is None:
            unused = changed(self) & {"verdict", "judge", "reference", "steps"}
            return [f"eval.{name} has no effect with eval.dataset: null." for name in sorted(unused)]
        return [
            f"eval.{name}.{field} has no effect with eval.verdict: {self.verdict}."
            for name, part in (("judge", self.judge), ("reference", self.reference))
            if name != self.verdict
            for field in sorted(changed(part))
        ]


class RewardsSection(Section):
    """The multi-reward scorer."""

    components: tuple[AnyComponent, ...] = option(
        paper_components(),
        "the components, in the order of the Conductor's outputs",
        source=f"{PAPER}, appendix B",
        min_length=1,
    )
    normalisation: Literal["paper", "rank", "zscore", "none"] = option(
        "paper",
        "paper: each kind's own, see docs/concepts.md; rank: every component by its rank in the group; "
        "zscore: standardised in the group; none: raw values",
        source=f"{PAPER}, appendix B",
    )
    max_missing_rate: float = option(
        0.2, "stop when a component has no value for more responses of a step than this", unit="share", ge=0, le=1
    )

    @field_validator("components")
    @classmethod
    def _names_and_gates(cls, value: tuple[ComponentSection, ...]) -> tuple[ComponentSection, ...]:
        check_names_and_gates(value)
        return value


class DsSection(Section):
    """DeepSpeed and the models' precision."""

    zero_stage: Literal[0, 1, 2, 3] = option(3, "ZeRO stage", source=PAPER)
    param_dtype: ParamDtype = option("auto", "auto: bf16 on cuda, fp32 on a CPU; vLLM uses the same")
    attn_implementation: str = option("auto", "auto: flash_attention_2 on cuda, sdpa on a CPU")
    adam_offload: bool = option(False, "keep the optimiser in CPU memory", source=OPENRLHF)
    tensor_parallel_size: int = option(
        1,
        "GPUs that share each layer of policy and reference (AutoTP); above 1 needs ds.zero_stage 0, 1 or 2",
        unit="GPUs",
        source=OPENRLHF,
        ge=1,
    )
    zpg: int = option(1, "ZeRO++ secondary partition", unit="ranks", source=OPENRLHF, ge=1)
    overlap_comm: bool = option(False, "overlap communication with the backward pass", source=OPENRLHF)
    grad_accum_dtype: Literal["fp32", "bf16"] | None = option(
        None, "precision gradients are accumulated in", source=OPENRLHF
    )
    enable_sleep: bool = option(
        False, "move the policy's states to CPU memory while vLLM samples; needs train.colocate_all", source=OPENRLHF
    )
    logits_chunk_tokens: int = option(1024, "tokens whose logits exist at a time", unit="tokens", ge=1)


class CkptSection(Section):
    """Checkpoints, in run.dir/checkpoints."""

    save_steps: int = option(-1, "save every this many steps; -1: never", unit="steps", source=OPENRLHF, ge=-1)
    max_num: int = option(3, "keep at most this many, and the one of the best evaluation", source=OPENRLHF, ge=1)
    best_metric_key: str = option(
        "auto",
        "with eval.steps the policy of the best evaluation is kept in run.dir/best by this key of metrics.jsonl; auto: "
        "eval/overall/accuracy, or eval/overall/score where there are scores only; none: not kept",
        pattern="^(auto|none|eval/.+/(accuracy|score))$",
        source=OPENRLHF,
    )
