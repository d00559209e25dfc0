"""Supervised fine-tuning with OpenRLHF's own trainer: the cold start."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path

from openrlhf_maestro.config.schema import BUNDLED
from openrlhf_maestro.config.sft import SftConfig
from openrlhf_maestro.data.assets import ensure_asset
from openrlhf_maestro.data.demonstrations import Demonstration, load_demonstrations
from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.launch.environment import process_environment
from openrlhf_maestro.trainer.bundled import POLICY_BASES, bundled_dataset


def fine_tune(config: SftConfig) -> Path:
    """Tune a model on prompts and responses; returns its folder. Under torchrun it is one of the ranks.

    Raises:
        DataError: the rows cannot be read, or have no such columns.
        ConfigError: a template or a bundled model does not exist, or the device is not there.
    """
    config = _resolve(config)
    from openrlhf_maestro.upstream.device import choose_device

    device = choose_device(config.run.device)
    os.environ.update(process_environment(device, config.run.trust_remote_code))
    _single_process_unless_launched()
    from openrlhf_maestro.upstream.patches import prepare_process

    prepare_process()
    from openrlhf.cli import train_sft

    from openrlhf_maestro.upstream.options import sft_arguments

    train_sft.train(sft_arguments(config, device))
    return Path(config.ckpt.output_dir)


def _resolve(config: SftConfig) -> SftConfig:
    """Bundled names replaced by the files they stand for."""
    data = config.data
    dataset = bundled_dataset(data.dataset, data.dataset_split, config.run.assets_dir)
    rows = load_demonstrations(data.model_copy(update={"dataset": dataset}))
    model = config.model.model_name_or_path
    if model.startswith(BUNDLED):
        base = model.removeprefix(BUNDLED)
        if base not in POLICY_BASES.values():
            names = ", ".join(BUNDLED + name for name in POLICY_BASES.values())
            raise ConfigError(f"model.model_name_or_path: {model} cannot be tuned. Bundled are {names}.")
        model = str(ensure_asset(base, config.run.assets_dir))
    return config.model_copy(
        update={
            "data": data.model_copy(update={"dataset": _written(rows, Path(config.ckpt.output_dir))} | _ROWS),
            "model": config.model.model_copy(update={"model_name_or_path": model}),
        }
    )


# How OpenRLHF is told to read the file that `_written` makes.
_ROWS = {"dataset_split": "train", "input_key": "prompt", "output_key": "response"}


def _written(rows: list[Demonstration], folder: Path) -> str:
    """The rows in a file beside the model; ranks that are launched together all write the same."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "sft_rows.jsonl"
    handle, partial = tempfile.mkstemp(dir=folder, prefix=f".{file.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(partial, file)
    return str(file)


def _single_process_unless_launched() -> None:
    """What torchrun would set, for a run of one process."""
    if "WORLD_SIZE" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    )
