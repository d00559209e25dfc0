"""Makes what a configuration names and this machine has not: bundled tasks and models, models with random weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openrlhf_maestro.config.load import to_yaml
from openrlhf_maestro.config.schema import BUNDLED, BUNDLED_TASKS, MaestroConfig
from openrlhf_maestro.config.sft import SftConfig
from openrlhf_maestro.data.assets import asset_path, ensure_asset, publish
from openrlhf_maestro.errors import ConfigError, RunError
from openrlhf_maestro.launch.environment import process_environment

# The base model that each bundled policy is cold-started from.
POLICY_BASES = {"policy": "policy_base", "policy_untied": "policy_base_untied"}
PREFERENCE = "preference"

# Stopped where held-out accuracy leaves room to learn (README: what to expect).
COLD_START: dict[str, Any] = {
    "data": {"dataset": BUNDLED_TASKS, "max_len": 256},
    "train": {"batch_size": 32, "micro_batch_size": 32, "max_epochs": 1, "seed": 0},
    "adam": {"lr": 5e-3, "betas": [0.9, 0.95]},
}


def bundled_dataset(dataset: str, split: str, assets_dir: str) -> str:
    """The file of a split of the bundled tasks; any other data set as it is.

    Raises:
        ConfigError: the bundled tasks have no such split.
    """
    if dataset != BUNDLED_TASKS:
        return dataset
    folder = ensure_asset("tasks", assets_dir)
    if not (folder / f"{split}.jsonl").is_file():
        splits = ", ".join(sorted(file.stem for file in folder.glob("*.jsonl")))
        raise ConfigError(f"{BUNDLED_TASKS} has no split `{split}`. There are {splits}.")
    return str(folder / f"{split}.jsonl")


def missing_models(config: MaestroConfig) -> list[str]:
    """What `make_models` will have to make, in words."""
    wanted = (config.actor.model_name_or_path, config.reward.model_name_or_path or "")
    return [
        name for name in wanted if name.startswith(BUNDLED) and not _bundled_path(name, config.run.assets_dir).is_dir()
    ]


def make_models(config: MaestroConfig) -> MaestroConfig:
    """The configuration with every bundled or random model made and replaced by its folder.

    Raises:
        ConfigError: there is no such bundled model.
        RunError: one could not be made; the message names the log.
    """
    actor, preference = config.actor.model_name_or_path, config.reward.model_name_or_path
    # Both are made by processes of their own: side by side, and without their libraries in this one.
    with ThreadPoolExecutor() as pool:
        policy_path = pool.submit(_policy_folder, config)
        preference_path = pool.submit(_preference_folder, preference, config.run.assets_dir)
        actor, preference = policy_path.result(), preference_path.result()
    return config.model_copy(
        update={
            "actor": config.actor.model_copy(update={"model_name_or_path": actor}),
            "reward": config.reward.model_copy(update={"model_name_or_path": preference}),
        }
    )


def bundled_policy(name: str, assets_dir: str) -> str:
    """The folder of a bundled policy, or of the base of one, made where it is missing; any other name as it is.

    Raises:
        ConfigError: there is no such bundled model.
        RunError: it could not be made; the message names the log.
    """
    if not name.startswith(BUNDLED):
        return name
    key = name.removeprefix(BUNDLED)
    if key in POLICY_BASES.values():
        return str(ensure_asset(key, assets_dir))
    if key not in POLICY_BASES:
        names = ", ".join(BUNDLED + known for known in (*POLICY_BASES, *POLICY_BASES.values()))
        raise ConfigError(f"{name} is not a bundled policy. There are {names}.")
    target = _bundled_path(name, assets_dir)
    if not target.is_dir():
        _cold_start(POLICY_BASES[key], target, assets_dir)
    return str(target)


def _bundled_path(name: str, assets_dir: str) -> Path:
    key = name.removeprefix(BUNDLED)
    if key in POLICY_BASES:
        base = asset_path(POLICY_BASES[key], assets_dir)
        recipe = hashlib.sha256(json.dumps([base.name, COLD_START], sort_keys=True).encode()).hexdigest()[:12]
        return Path(assets_dir) / f"{key}-{recipe}"
    if key == PREFERENCE:
        return asset_path(PREFERENCE, assets_dir)
    names = ", ".join(BUNDLED + known for known in (*POLICY_BASES, PREFERENCE))
    raise ConfigError(f"{name} is not a bundled model. There are {names}.")


def _policy_folder(config: MaestroConfig) -> str:
    name = config.actor.model_name_or_path
    if config.actor.random_init is not None:
        return _random_model(name, config.actor.random_init, config.train.seed, config.run.assets_dir)
    return bundled_policy(name, config.run.assets_dir)


def _cold_start(base: str, target: Path, assets_dir: str) -> None:
    """Fine-tune a bundled base model by `maestro sft`, in a process of its own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _run(f"openrlhf_maestro.data.assets:{base}", ["-c", _ENSURE, base, assets_dir], target.with_suffix(".log"))
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        settings = COLD_START | {
            "run": {"device": "cpu", "assets_dir": assets_dir},
            "model": {"model_name_or_path": str(asset_path(base, assets_dir))},
            "ckpt": {"output_dir": str(staging / "model")},
        }
        recipe = staging / "sft.yaml"
        recipe.write_text(to_yaml(SftConfig.model_validate(settings)))
        _run("maestro sft", ["-m", "openrlhf_maestro", "sft", "--config", str(recipe)], target.with_suffix(".log"))
        publish(staging / "model", target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


_ENSURE = "import sys; from openrlhf_maestro.data.assets import ensure_asset; ensure_asset(sys.argv[1], sys.argv[2])"


def _preference_folder(name: str | None, assets_dir: str) -> str | None:
    if name is None or not name.startswith(BUNDLED):
        return name
    target = _bundled_path(name, assets_dir)
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        _run("the preference model", ["-c", _ENSURE, PREFERENCE, assets_dir], target.with_suffix(".log"))
    return str(target)


def _random_model(name: str, overrides: dict[str, Any], seed: int, assets_dir: str) -> str:
    """Random weights of the architecture in `name`/config.json with some values overridden, beside its tokenizer."""
    key = json.dumps([str(Path(name).resolve()), overrides, seed], sort_keys=True)
    target = Path(assets_dir) / f"random-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            arguments = ["-c", _RANDOM, name, json.dumps(overrides), str(seed), str(staging)]
            _run(f"a random model like {name}", arguments, target.with_suffix(".log"))
            publish(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return str(target)


_RANDOM = """
import json, pathlib, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
source, overrides, seed, target = sys.argv[1:]
# Merged before the config is made: it derives and checks values from one another.
values = json.loads((pathlib.Path(source) / "config.json").read_text()) | json.loads(overrides)
torch.manual_seed(int(seed))
config = AutoConfig.for_model(values.pop("model_type"), **values)
AutoModelForCausalLM.from_config(config).float().save_pretrained(target)
AutoTokenizer.from_pretrained(source).save_pretrained(target)
"""


def _run(what: str, arguments: list[str], log: Path) -> None:
    environment = os.environ | process_environment("cpu", trust_remote_code=False)
    with log.open("a") as output:
        done = subprocess.run([sys.executable, *arguments], env=environment, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "it printed nothing")
        raise RunError(f"{what} failed: {last} The whole output is in {log}.")
