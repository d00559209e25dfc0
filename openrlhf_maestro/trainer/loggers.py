"""Every number of metrics.jsonl to TensorBoard and Weights & Biases as well, where the configuration asks for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from openrlhf_maestro.config.load import to_yaml
from openrlhf_maestro.config.logger import LoggerSection, WandbSection
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.config.yaml12 import parse
from openrlhf_maestro.errors import ConfigError

# Longest wait for the answer of Weights & Biases at the start, seconds.
WANDB_INIT_S = 60.0


class Logger(Protocol):
    """Takes the finite numbers of a step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Loggers:
    """All that a run has; without any it does nothing."""

    def __init__(self, loggers: list[Logger]) -> None:
        self._loggers = loggers

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """What is not finite is left out: metrics.jsonl has it as null."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for logger in self._loggers:
            logger.log(step, finite)

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()


class TensorBoardLogger:
    """Scalars in an event file."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What was written there after these steps is hidden: by a run that goes on now, or by an earlier one.
        self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbLogger:
    """A run of Weights & Biases; one that is resumed goes on under the same id.

    Its own step counter cannot go back, and would refuse what a resume runs again: `step` is a metric, and the axis.
    """

    def __init__(self, section: WandbSection, config: MaestroConfig, folder: Path) -> None:
        import wandb

        try:
            self._run = wandb.init(
                mode="offline" if section.mode == "offline" else "online",
                project=section.project,
                entity=section.org,
                group=section.group,
                name=section.run_name or config.run.name,
                id=_run_id(folder / "wandb_id"),
                resume="allow",
                dir=str(folder),
                config=parse(to_yaml(config)),  # secrets are redacted there
                settings=wandb.Settings(silent=True, console="off", init_timeout=WANDB_INIT_S),
            )
        except (wandb.errors.Error, OSError) as error:
            raise ConfigError(
                f"logger.wandb: Weights & Biases cannot be used: {' '.join(str(error).split())} Set WANDB_API_KEY, or "
                "logger.wandb.mode to offline or off."
            ) from error

        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step} | dict(metrics))

    def close(self) -> None:
        self._run.finish()


def make_loggers(config: MaestroConfig, run_dir: Path, done: int) -> Loggers:
    """The loggers of a run that has done so many steps.

    Raises:
        ConfigError: one of them cannot be used here.
    """
    section: LoggerSection = config.logger
    loggers: list[Logger] = []
    if section.tensorboard_dir is not None:
        folder = Path(section.tensorboard_dir) / config.run.name
        try:
            loggers.append(TensorBoardLogger(folder, done))
        except OSError as error:
            raise ConfigError(f"logger.tensorboard_dir: {folder} cannot be written: {error.strerror}.") from error
    if section.wandb.mode != "off":
        loggers.append(WandbLogger(section.wandb, config, run_dir))
    return Loggers(loggers)


def _run_id(file: Path) -> str:
    """The id in the file; made where there is none."""
    if not file.is_file():
        file.write_text(uuid4().hex[:8])
    return file.read_text()
