"""Supervised fine-tuning with OpenRLHF's own trainer: the cold start."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

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
    data = config.data
    dataset = bundled_dataset(data.dataset, data.dataset_split, config.run.assets_dir)
    rows = load_demonstrations(data.model_copy(update={"dataset": dataset}))
    model = _model_folder(config)
    from openrlhf_maestro.upstream.device import choose_device

    device = choose_device(config.run.device)
    os.environ.update(process_environment(device, config.run.trust_remote_code))
    _single_process_unless_launched()
    with TemporaryDirectory(prefix="maestro-sft-") as folder:
        # The `datasets` library keeps a copy of every file it has read.
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
        file = _written(rows, Path(folder))
        resolved = config.model_copy(
            update={
                "data": data.model_copy(update={"dataset": file} | _ROWS),
                "model": config.model.model_copy(update={"model_name_or_path": model}),
            }
        )
        from openrlhf_maestro.upstream.patches import prepare_process

        prepare_process()
        from openrlhf.cli import train_sft

        from openrlhf_maestro.upstream.options import sft_arguments

        train_sft.train(sft_arguments(resolved, device))
    return Path(config.ckpt.output_dir)


def _model_folder(config: SftConfig) -> str:
    """The model to tune; a bundled one is made where it is missing."""
    name = config.model.model_name_or_path
    if not name.startswith(BUNDLED):
        return name
    base = name.removeprefix(BUNDLED)
    if base not in POLICY_BASES.values():
        names = ", ".join(BUNDLED + known for known in POLICY_BASES.values())
        raise ConfigError(f"model.model_name_or_path: {name} cannot be tuned. Bundled are {names}.")
    return str(ensure_asset(base, config.run.assets_dir))


# How OpenRLHF is told to read the file that `_written` makes.
_ROWS = {"dataset_split": "train", "input_key": "prompt", "output_key": "response"}


def _written(rows: list[Demonstration], folder: Path) -> str:
    file = folder / "rows.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
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
