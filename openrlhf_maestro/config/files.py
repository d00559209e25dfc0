"""Configuration files: YAML of sections, which may extend another file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from openrlhf_maestro.config import yaml12
from openrlhf_maestro.errors import ConfigError

EXTENDS = "extends"
_MAX_SHOWN = 60


@dataclass(frozen=True)
class ConfigFile:
    """What one file says itself."""

    name: str
    values: dict[Any, Any]

    def holds(self, name: str) -> bool:
        """Whether the option or section of this dotted name is written in it."""
        values: Any = self.values
        for key in name.split("."):
            if not isinstance(values, Mapping) or key not in values:
                return False
            values = values[key]
        return True


def read_files(name: str) -> list[ConfigFile]:
    """The file and those it extends, one after the other; the last word comes last.

    `extends` names one file, relative to the folder of the file in which it stands. Raises ConfigError with the name of
    the file that cannot be read, is no YAML of sections, or leads back to one before.
    """
    files: list[ConfigFile] = []
    paths: list[Path] = []
    path, where = Path(name), f"--config {name}"
    while True:
        if path.resolve() in paths:
            raise ConfigError(f"{where}: the file leads back to itself. Let one of them extend nothing.")
        paths.append(path.resolve())
        values = _read(path, where)
        files.insert(0, ConfigFile(str(path), values))
        if EXTENDS not in values:
            return files
        base = values.pop(EXTENDS)
        if not isinstance(base, str) or not base:
            raise ConfigError(f"`{EXTENDS}` in {path} is {shown(base)}: it is the path of one YAML file.")
        path, where = path.parent / Path(base).expanduser(), f"`{EXTENDS}: {base}` in {path}"


def shown(value: Any) -> str:
    """A value as a short text on one line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def yaml_problem(error: yaml.YAMLError) -> str:
    """Where and what, on one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).replace("\n", " ")
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def _read(path: Path, where: str) -> dict[Any, Any]:
    try:
        values = yaml12.parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{where}: there is no such file.") from None
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not a UTF-8 text (byte {error.start}).") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {yaml_problem(error)}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {shown(values)}, not sections with options, as in `train: {{seed: 1}}`.")
    return values
