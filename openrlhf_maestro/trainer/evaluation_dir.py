"""The folder of an evaluation: what decides its responses, which of them are there, and what was found."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_maestro.config.evaluate import EvaluateConfig
from openrlhf_maestro.config.load import to_yaml
from openrlhf_maestro.config.sections import listed
from openrlhf_maestro.config.writing import write_atomically
from openrlhf_maestro.data.prompts import Prompt
from openrlhf_maestro.errors import ConfigError, DataError
from openrlhf_maestro.evaluation.log import Row, check_fields, read_rows, write_rows
from openrlhf_maestro.upstream.device import param_dtype

RESPONSES = "responses.jsonl"
MADE_BY = "made_by.json"
ENGINE_LOG = "engine.log"

# What decides a response, beside its prompt, which is compared itself. More samples or rows may be added later.
_DECIDING = {
    "model": ("name_or_path",),
    "data": (
        "dataset", "split", "input_key", "apply_chat_template", "enable_thinking", "input_template", "truncate_prompts",
    ),
    "generation": ("temperature", "top_p", "max_new_tokens", "seed"),
    "vllm": ("param_dtype",),
}  # fmt: skip

# What is read of a response that is there.
_FIELDS = {"key": str, "prompt": str, "seed": int, "response": str, "truncated": bool, "response_tokens": int}

_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "tokenizer.json")
_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True)
class Wanted:
    """One response that the evaluation is to have."""

    prompt: Prompt
    rendered: str  # the prompt as the model reads it
    sample: int
    cluster: str | None
    seed: int

    @property
    def key(self) -> str:
        return f"{self.prompt.id}#{self.sample}"

    def row(self, text: str, *, truncated: bool, tokens: int) -> Row:
        """Its row in responses.jsonl."""
        prompt = self.prompt
        return {
            "key": self.key,
            "id": prompt.id,
            "sample": self.sample,
            "datasource": prompt.datasource,
            "cluster": self.cluster,
            "question": prompt.question,
            "prompt": self.rendered,
            "reference": prompt.reference,
            "response": text,
            "truncated": truncated,
            "response_tokens": tokens,
            "seed": self.seed,
        }


class EvaluationDir:
    """The files of an evaluation; docs/evaluation.md says what each holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.responses = path / RESPONSES
        self.log = path / ENGINE_LOG

    def start(self, config: EvaluateConfig, model: str, device: str) -> Path | None:
        """Make the folder ready; returns where an earlier evaluation was moved, if one was.

        Args:
            config: as it was given.
            model: folder or name of the model, bundled names resolved.
            device: "cpu" or "cuda".

        Raises:
            ConfigError: what is there was made by other options, or the folder cannot be made or moved.
            DataError: made_by.json is damaged.
        """
        moved = None
        made_by = deciding_options(config, model, device)
        known = self.path / MADE_BY
        if known.exists() and config.run.resume == "never":
            moved = self._move_aside(known)
        elif known.exists():
            self._check_same(_read_options(known), made_by)
        elif self.responses.exists():
            raise ConfigError(
                f"output_dir: {self.responses} is there, but not {MADE_BY}, which says how it was made. Use another "
                "folder."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(known, json.dumps(made_by, indent=1, ensure_ascii=False) + "\n")
            write_atomically(self.path / "config.yaml", to_yaml(config))
        except OSError as error:
            raise ConfigError(
                f"output_dir: {self.path} cannot be written: {error.strerror}. Name another folder."
            ) from error
        return moved

    def _move_aside(self, known: Path) -> Path:
        try:
            stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(known.stat().st_mtime))
            return self.path.rename(self.path.with_name(f"{self.path.name}.{stamp}"))
        except OSError as error:
            raise ConfigError(
                f"output_dir: {self.path} cannot be moved aside: {error.strerror}. Name another folder."
            ) from error

    def _check_same(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        meant_before, meant_now = _meaning(before), _meaning(now)
        for name in dict.fromkeys((*before, *now)):
            if before.get(name) != now.get(name) and meant_before.get(name) != meant_now.get(name):
                raise ConfigError(
                    f"{self.path} holds an evaluation with {name} {before.get(name)}, and now it is {now.get(name)}. "
                    "Give this one another output_dir or run.name, or begin anew with --run.resume never."
                )

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """summary.json."""
        write_atomically(
            self.path / "summary.json", json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )

    def order_responses(self, wanted: Sequence[Wanted], found: Mapping[str, Row]) -> list[Row]:
        """Bring responses.jsonl into the order of the data; returns the wanted ones, with what the data says now.

        Responses that are not wanted this time (fewer rows, fewer samples) stay at the end.
        """
        rows = [
            one.row(
                found[one.key]["response"],
                truncated=found[one.key]["truncated"],
                tokens=found[one.key]["response_tokens"],
            )
            for one in wanted
        ]
        keys = {row["key"] for row in rows}
        write_rows(self.responses, [*rows, *(row for key, row in found.items() if key not in keys)])
        return rows


def check_responses(rows: Sequence[Row], wanted: Sequence[Wanted], path: Path) -> dict[str, Row]:
    """The responses that are there, by key.

    Raises:
        DataError: a row lacks something or is damaged, or was made for another prompt.
    """
    check_fields(path, rows, _FIELDS, "response")
    found = {row["key"]: row for row in rows}
    for one in wanted:
        row = found.get(one.key, {})
        if row and (row["prompt"], row["seed"]) != (one.rendered, one.seed):
            raise DataError(
                f"{path}: the response {one.key} was made for another prompt than row {one.prompt.row} of "
                f"{one.prompt.source} gives now: the data, a template or the tokenizer has changed. Give this "
                "evaluation another output_dir, or begin anew with --run.resume never."
            )
    return found


def other_responses(folder: Path) -> dict[str, Row]:
    """The responses of another evaluation, by key. Raises DataError where it has none."""
    file = folder / RESPONSES
    if not file.is_file():
        raise DataError(f"verdict.against: {folder} is not the folder of an evaluation (it has no {RESPONSES}).")
    return check_responses(read_rows(file), (), file)


def check_same_questions(others: Mapping[str, Row], wanted: Sequence[Wanted], folder: str) -> None:
    """Raises DataError where the other evaluation, in `folder`, lacks a response or has one to another question."""
    for one in wanted:
        row = others.get(one.key)
        if row is None:
            raise DataError(
                f"verdict.against: {folder} has no response {one.key}. Evaluate the other model on the same rows, with "
                "as many samples."
            )
        if row.get("question") != one.prompt.question:
            raise DataError(
                f"verdict.against: the response {one.key} in {folder} is to another question than row "
                f"{one.prompt.row} of {one.prompt.source} asks. Evaluate the other model on the same data."
            )


def deciding_options(config: EvaluateConfig, model: str, device: str) -> dict[str, Any]:
    """Everything that decides what a response is, by the name of the option."""
    values = {
        f"{name}.{field}": getattr(getattr(config, name), field)
        for name, fields in _DECIDING.items()
        for field in fields
    }
    return values | {"run.device": device, "the model's files": files_digest(Path(model).expanduser())}


def _read_options(file: Path) -> dict[str, Any]:
    """Of made_by.json. Raises DataError where it is damaged."""
    try:
        options = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(options, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}, which says how the responses were made, cannot be read: {error}. Begin anew with --run.resume "
            "never, or use another output_dir."
        ) from None
    return options


def _meaning(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with `auto` and paths resolved: another way to write the same is no other option."""
    meant = dict(options)
    if isinstance(dtype := options.get("vllm.param_dtype"), str):
        meant["vllm.param_dtype"] = param_dtype(dtype, str(options.get("run.device")))
    for name in ("model.name_or_path", "data.dataset"):
        if isinstance(value := options.get(name), str):
            meant[name] = [_real(part) for part in listed(value)]
    return meant


def _real(source: str) -> str:
    """The real path of a file or folder; a name on the hub as it stands."""
    path = os.path.expanduser(source)
    return os.path.realpath(path) if os.path.exists(path) else source


def files_digest(folder: Path) -> str | None:
    """Of the model's files, so that one that was trained anew is told from the old one; None where it is no folder.

    Names, sizes and 64 blocks over the length of each file, because reading 100 GB would take minutes.
    """
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern)):
        size = file.stat().st_size
        digest.update(f"{file.name}|{size}|".encode())
        with file.open("rb") as stream:
            for index in range(_SAMPLES):
                stream.seek(size * index // _SAMPLES)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
