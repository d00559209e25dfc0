"""Where the numbers of metrics.jsonl go besides."""

from __future__ import annotations

from typing import Literal

from openrlhf_maestro.config.fields import OPENRLHF, Section, option, section


class WandbSection(Section):
    """Weights & Biases. Its key is read from WANDB_API_KEY or `wandb login`, never from an option."""

    mode: Literal["off", "online", "offline"] = option(
        "off", "online: sent as they come; offline: kept in run.dir/wandb for `wandb sync`; off: not at all"
    )
    project: str = option("openrlhf_maestro", "name of the project")
    org: str | None = option(None, "team or user the project belongs to; null: the key's own", source=OPENRLHF)
    group: str | None = option(None, "runs of one group are shown together", source=OPENRLHF)
    run_name: str | None = option(None, "name of the run there; default run.name", source=OPENRLHF)


class LoggerSection(Section):
    """Where the numbers of metrics.jsonl go besides."""

    tensorboard_dir: str | None = option(
        None, "folder of TensorBoard's event files, those of a run in <folder>/<run.name>; null: none", source=OPENRLHF
    )
    wandb: WandbSection = section(WandbSection)
