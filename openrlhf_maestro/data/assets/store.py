"""Where assets lie and how they get there: a folder per recipe, made whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path

from openrlhf_maestro.data import tasks
from openrlhf_maestro.data.assets.recipes import DEFAULT_RECIPES, PolicyRecipe, PreferenceRecipe, Recipe, TasksRecipe

_log = logging.getLogger(__name__)
_DIGEST_CHARS = 12


@cache
def _source_digest() -> str:
    """A hash of the code that makes assets, so that a changed family or trainer changes every folder's name."""
    digest = hashlib.sha256()
    for folder in (Path(tasks.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.glob("*.py")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def asset_path(name: str, directory: str | Path, recipe: Recipe | None = None) -> Path:
    """The folder of an asset, `<directory>/<name>-<hash of recipe and code>`, whether it is there or not.

    Raises:
        ValueError: no asset of this name, or a recipe of another kind than its own.
    """
    recipe = _recipe_for(name, recipe)
    content = json.dumps({"recipe": asdict(recipe), "source": _source_digest()}, sort_keys=True)
    return Path(directory) / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_CHARS]}"


def ensure_asset(name: str, directory: str | Path, recipe: Recipe | None = None) -> Path:
    """The folder of an asset, which is built first where it is missing.

    An asset that is there is returned in milliseconds, without torch or transformers being imported. Building goes to a
    temporary folder that is renamed when complete, so a reader never sees half an asset, and of two processes
    that build at once the first to finish wins and the other's work is dropped.

    Args:
        name: `tasks` (`train.jsonl`, `validation.jsonl`, `test.jsonl`), `policy_base` or `policy_base_untied`
            (model and tokenizer), `preference` (sequence classifier, its tokenizer, `preference_metrics.json`).
        directory: the folder that holds all assets; made where it is missing.
        recipe: what to build; by default `DEFAULT_RECIPES[name]`.

    Raises:
        ValueError: no asset of this name, or a recipe of another kind than its own.
    """
    target = asset_path(name, directory, recipe)
    if target.is_dir():
        return target
    start_s = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    # A dot in front keeps half-built folders out of `ls`; same file system, so that the rename is atomic.
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _build(_recipe_for(name, recipe), staging, Path(directory))
        staging.chmod(0o755)
        publish(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _log.info("built asset %s in %.1f s", target.name, time.monotonic() - start_s)
    return target


def publish(staging: Path, target: Path) -> None:
    """Rename the finished folder into place, unless another process has put the same asset there meanwhile."""
    try:
        os.replace(staging, target)
    except OSError:
        if not target.is_dir():
            raise
        _log.info("another process built %s first", target.name)


def _recipe_for(name: str, recipe: Recipe | None) -> Recipe:
    if name not in DEFAULT_RECIPES:
        raise ValueError(f"no bundled asset {name!r}; there are {', '.join(DEFAULT_RECIPES)}")
    default = DEFAULT_RECIPES[name]
    if recipe is not None and type(recipe) is not type(default):
        raise ValueError(f"asset {name} takes a {type(default).__name__}, not a {type(recipe).__name__}")
    return recipe or default


def _build(recipe: Recipe, folder: Path, directory: Path) -> None:
    """Build into an empty folder. The builders' modules import torch and transformers: only here, when needed."""
    if isinstance(recipe, TasksRecipe):
        from openrlhf_maestro.data.tasks.rows import task_rows, write_jsonl

        for split, rows in task_rows(recipe.sizes, recipe.seed).items():
            write_jsonl(rows, folder / f"{split}.jsonl")
        return
    rows_folder = ensure_asset("tasks", directory, recipe.tasks)
    if isinstance(recipe, PolicyRecipe):
        from openrlhf_maestro.data.assets.policy import build_policy

        build_policy(recipe, rows_folder, folder)
    elif isinstance(recipe, PreferenceRecipe):
        from openrlhf_maestro.data.assets.preference import build_preference_model

        build_preference_model(recipe, rows_folder, folder)
