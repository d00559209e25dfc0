"""The configuration of `maestro sft`: OpenRLHF's supervised fine-tuning, under its own option names."""

from __future__ import annotations

from openrlhf_maestro.config.fields import OPENRLHF, Section, option, section
from openrlhf_maestro.config.sections import AdamSection, Device, ParamDtype


class SftRunSection(Section):
    """Device and trust."""

    device: Device = option("auto", "where the model runs; auto: cuda where there is one, else cpu")
    trust_remote_code: bool = option(False, "let Hugging Face repositories run their own code")
    assets_dir: str = option("assets", "folder of the bundled tasks and models, made on first use")


class SftModelSection(Section):
    """The model to tune."""

    model_name_or_path: str = option(..., "Hugging Face name or folder, or bundled:policy_base")
    gradient_checkpointing_enable: bool = option(False, "recompute activations in the backward pass", source=OPENRLHF)


class SftDataSection(Section):
    """Prompts with the responses to imitate."""

    dataset: str = option(..., "JSONL, CSV, parquet, a folder or a hub name; several by commas; or bundled:tasks")
    dataset_split: str = option("train", "split to train on", source=OPENRLHF)
    input_key: str = option("prompt", "column of the prompt")
    output_key: str = option("response", "column of the response; `reference` trains on the reference answers")
    input_template: str | None = option(
        None, "as data.input_template of `maestro train`: a name, a text with {} or a file with one", source=OPENRLHF
    )
    output_template: str | None = option(
        None,
        "a text with {} for the response, or a file with one: what the answers of a data set are wrapped in, such as "
        r"'<think>\n\n</think>\n\n<answer>\n{}\n</answer>' in YAML's double quotes",
    )
    apply_chat_template: bool = option(True, "wrap prompts in the tokenizer's chat template")
    max_len: int = option(2048, "longest prompt + response", unit="tokens", source=OPENRLHF, ge=2)
    max_samples: int = option(1_000_000, "use at most this many rows", unit="rows", source=OPENRLHF, ge=1)


class SftTrainSection(Section):
    """Sizes and seed."""

    seed: int = option(42, "of the order of the rows", source=OPENRLHF, ge=0)
    batch_size: int = option(128, "rows an optimiser step", unit="rows", source=OPENRLHF, ge=1)
    micro_batch_size: int = option(8, "rows a rank trains on at a time", unit="rows", source=OPENRLHF, ge=1)
    max_epochs: int = option(1, "passes over the rows", ge=1)


class SftDsSection(Section):
    """DeepSpeed and precision."""

    zero_stage: int = option(2, "ZeRO stage", source=OPENRLHF, ge=0, le=3)
    param_dtype: ParamDtype = option("auto", "auto: bf16 on cuda, fp32 on a CPU")
    attn_implementation: str = option("auto", "auto: flash_attention_2 on cuda, sdpa on a CPU")


class SftCkptSection(Section):
    """Where the model goes."""

    output_dir: str = option("./ckpt", "folder of the tuned model, Hugging Face layout", source=OPENRLHF)


class SftConfig(Section):
    """Everything `maestro sft` reads."""

    run: SftRunSection = section(SftRunSection)
    model: SftModelSection
    data: SftDataSection
    train: SftTrainSection = section(SftTrainSection)
    ds: SftDsSection = section(SftDsSection)
    ckpt: SftCkptSection = section(SftCkptSection)
    adam: AdamSection = section(AdamSection)
    lr_scheduler: str = option("cosine_with_min_lr", "a transformers schedule", source=OPENRLHF)
    lr_warmup_ratio: float = option(0.03, "share of the updates used to warm up", source=OPENRLHF, ge=0, le=1)
    min_lr_ratio: float = option(0.1, "floor of the schedule, as a share of lr", source=OPENRLHF, ge=0, le=1)
    max_norm: float = option(1.0, "gradient clipping", unit="L2 norm", source=OPENRLHF, ge=0)
