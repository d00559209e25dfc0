"""From a YAML file and dotted command-line overrides to a validated configuration, and back to YAML.

pydantic-settings was tried and does not fit: its command line exits through argparse with the usage of every option,
takes a switch either bare or with a value but not both, reads values as JSON only, and knows no nearest name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from openrlhf_maestro.config import yaml12
from openrlhf_maestro.config.fields import Option, Section, options, section_names, subsections
from openrlhf_maestro.config.files import ConfigFile, read_files, shown, yaml_problem
from openrlhf_maestro.errors import ConfigError

__all__ = ["ConfigError", "load_config", "to_yaml"]

SectionT = TypeVar("SectionT", bound=Section)

REDACTED = "***"
_MAX_SHOWN_PROBLEMS = 5
_MIN_SIMILARITY = 0.45
_TIE = 0.02


def load_config(cls: type[SectionT], argv: Sequence[str]) -> SectionT:
    """The configuration that `argv` describes: `--config FILE.yaml`, changed by `--section.option value` overrides.

    A value is written after a space or `=`. Text options take it as it stands (`null` is null where the option may be
    null); all others read it as YAML, so lists and mappings are `'[0.2, 0.28]'`, `'{format: 1}'`. A switch alone is
    true. An option given twice keeps the last value. Raises ConfigError with every problem that can be told at once.
    """
    schema = _Schema(cls)
    command_line = _parse_command_line(schema, argv)
    values = _with_required_sections(cls, _file_values(schema, command_line.files))
    for name, value in command_line.overrides.items():
        _set(values, name, value)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise _config_error(_sentences(error, schema, command_line)) from None


def to_yaml(config: Section) -> str:
    """Every option of `config` with its value, as YAML that `load_config` reads back equal; secret ones as ***."""
    return yaml12.dump(_plain(config))


class _Schema:
    """The names `cls` declares."""

    def __init__(self, cls: type[Section]) -> None:
        self.cls = cls
        self.options = {known.name: known for known in options(cls)}
        self.sections = set(section_names(cls))
        self.shorthands = cls.shorthands

    def nearest(self, name: str) -> str:
        return _nearest(name, [*self.options, *self.sections])

    def owner(self, path: str) -> str:
        """The option that `path` (such as `rewards.components[0].kind`) is in; `path` itself where there is none."""
        part = path
        while part and part not in self.options:
            part = part[: max(part.rfind("."), part.rfind("["), 0)]
        return part or path


@dataclass
class _CommandLine:
    """What the command line gave."""

    file: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    files: list[ConfigFile] = field(default_factory=list)

    def where(self, path: str, owner: str) -> str:
        """`path` inside the option `owner`, the way the user wrote it."""
        if owner in self.overrides:
            return f"--{path}"
        file = next((file.name for file in reversed(self.files) if file.holds(owner)), self.file)
        return f"`{path}` in {file}" if file else f"`{path}`"


def _parse_command_line(schema: _Schema, argv: Sequence[str]) -> _CommandLine:
    found = _CommandLine()
    problems: list[str] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("--"):
            problems.append(f"unexpected argument `{token}`: options are written --section.option value.")
            continue
        given, equals, text = token[2:].partition("=")
        name = schema.shorthands.get(given, given)
        raw: str | None = text if equals else None
        if not equals and tokens and not tokens[0].startswith("--"):
            raw = tokens.pop(0)
        if name == "config":
            if not raw or found.file is not None:
                problems.append("--config takes one YAML file, once.")
            found.file = raw
        elif name not in schema.options:
            problems.append(_unknown_option(name, schema))
        else:
            try:
                found.overrides[name] = _override(schema.options[name], raw)
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise _config_error(problems)
    if found.file is not None:
        found.files = read_files(found.file)
    return found


def _unknown_option(name: str, schema: _Schema) -> str:
    if name in schema.sections:
        example = next(known for known in schema.options if known.startswith(f"{name}."))
        return f"--{name} is a section: give its options one by one, as in --{example}."
    parent = name.rpartition(".")[0]
    if parent in schema.options:
        return f"--{name} is not an option: --{parent} takes its whole value at once."
    return f"--{name} is not an option.{schema.nearest(name)}"


def _override(known: Option, raw: str | None) -> Any:
    if raw is None:
        if known.is_switch:
            return True
        raise ConfigError(f"--{known.name} needs a value ({known.meaning}).")
    if known.is_text:
        return None if known.allows_null and raw == "null" else raw
    try:
        value = yaml12.parse(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{known.name} {raw}: the value is not YAML: {yaml_problem(error)}.") from None
    for problem in _item_problems(known, value, f"--{known.name}"):
        raise ConfigError(problem)
    return value


def _file_values(schema: _Schema, files: Sequence[ConfigFile]) -> dict[str, Any]:
    """What the files say together."""
    problems = [problem for file in files for problem in _file_problems(schema, schema.cls, file.values, "", file.name)]
    if problems:
        raise _config_error(problems)
    values: dict[str, Any] = {}
    for file in files:
        values = _merged(schema.cls, values, file.values)
    return values


def _merged(cls: type[Section], below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`: sections option by option, lists and mappings whole."""
    nested = subsections(cls)
    return dict(below) | {
        name: _merged(nested[name], below.get(name) or {}, value or {}) if name in nested else value
        for name, value in above.items()
    }


def _file_problems(
    schema: _Schema, cls: type[Section], values: Mapping[Any, Any], prefix: str, file: str
) -> Iterator[str]:
    """Keys that are not in the schema, and sections that are not mappings."""
    nested = subsections(cls)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key in nested:
            if isinstance(value, Mapping):
                yield from _file_problems(schema, nested[key], value, f"{name}.", file)
            elif value is not None:
                yield f"`{name}` in {file} is {shown(value)}: it is a section, its options go below it, indented."
        elif not isinstance(key, str) or key not in cls.model_fields:
            if name in schema.options and "." in str(key):
                yield f"`{name}` in {file} is written with a dot: put the option below its section, indented."
            else:
                yield f"`{name}` in {file} is not an option.{schema.nearest(name)}"
        else:
            yield from _item_problems(schema.options[name], value, f"`{name}` in {file}")


def _item_problems(known: Option, value: Any, where: str) -> Iterator[str]:
    """Unknown keys inside the items of a list option."""
    for index, item in enumerate(value if isinstance(value, list) else ()):
        section = known.item_kinds.get(item.get("kind", "")) if isinstance(item, Mapping) else None
        if section is None:
            continue  # the validation names the kinds there are
        names = [own.name for own in options(section)]
        for key in item:
            if key not in names:
                place = f"{where}, item {index} ({item['kind']})"
                yield f"{place}: `{key}` is not an option of it.{_nearest(str(key), names)}"


def _with_required_sections(cls: type[Section], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which an empty section, or a required one that is absent, is an empty mapping.

    So what is reported as missing is the option, not its section.
    """
    result = dict(values)
    for name, nested in subsections(cls).items():
        if name in values or cls.model_fields[name].is_required():
            result[name] = _with_required_sections(nested, values.get(name) or {})
    return result


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for key in path:
        values = values.setdefault(key, {})
    values[last] = value


def _plain(config: Section) -> dict[str, Any]:
    secrets = {known.name for known in options(type(config), deep=False) if known.secret}
    return {name: REDACTED if name in secrets and value is not None else _plain_value(value) for name, value in config}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Section):
        return _plain(value)
    if isinstance(value, dict):
        return {key: _given(item) if isinstance(item, Section) else item for key, item in value.items()}
    return [_plain_value(item) for item in value] if isinstance(value, tuple) else value


def _given(section: Section) -> dict[str, Any]:
    """Only what was set: in a mapping of sections (`by_datasource`) an option that is not there has another's value."""
    return {name: value for name, value in _plain(section).items() if name in section.model_fields_set}


# Wording of problems.


def _config_error(problems: Sequence[str]) -> ConfigError:
    if len(problems) == 1:
        return ConfigError(problems[0])
    lines = [f"the configuration has {len(problems)} problems:"]
    lines += [f"- {problem}" for problem in problems[:_MAX_SHOWN_PROBLEMS]]
    if len(problems) > _MAX_SHOWN_PROBLEMS:
        lines.append(f"- and {len(problems) - _MAX_SHOWN_PROBLEMS} more.")
    return ConfigError("\n".join(lines))


def _sentences(error: ValidationError, schema: _Schema, command_line: _CommandLine) -> list[str]:
    found = error.errors(include_url=False)
    # A list whose items are refused is reported as too short as well: its items say it all.
    inner = {details["loc"][:length] for details in found for length in range(1, len(details["loc"]))}
    return [_sentence(details, schema, command_line) for details in found if details["loc"] not in inner]


def _sentence(details: ErrorDetails, schema: _Schema, command_line: _CommandLine) -> str:
    """One of pydantic's errors in the words of the user's option."""
    kind, value = details["type"], details["input"]
    path = _path(details["loc"])
    owner = schema.owner(path)
    where = command_line.where(path, owner)
    if kind == "value_error":
        message = str(details["ctx"]["error"])
        return f"{where}: {message}." if path else message
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"{where} {_kind_problem(details, schema.options[owner])}"
    length = _fixed_length(schema.options[owner])
    if length and kind in ("missing", "too_long"):
        return f"{command_line.where(owner, owner)} is {shown(value)}: it needs {length} values."
    if kind == "missing" and path == owner:
        place = f"put it in {command_line.file}, or give" if command_line.file else "give"
        return f"`{path}` is not set ({schema.options[path].meaning}): {place} --{path}."
    if kind == "missing":
        return f"{where} is not set."
    mend = ""
    if value is None:
        mend = " Leave it out for the default."
    elif kind == "string_type" and isinstance(value, (int, float)):
        mend = " Put it in quotes."
    return f"{where} is {shown(value)}: it {_requirement(details)}.{mend}"


def _path(location: tuple[int | str, ...]) -> str:
    """A place as `rewards.components[0].l_min`. Pydantic puts an item's kind after its index; it is left out."""
    parts = [part for index, part in enumerate(location) if index == 0 or not isinstance(location[index - 1], int)]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def _kind_problem(details: ErrorDetails, known: Option) -> str:
    if not isinstance(details["input"], Mapping):
        return f"is {shown(details['input'])}: it {_OWN_WORDS['model_type']}."
    if details["type"] == "union_tag_not_found":
        return f"has no kind: it should be one of {', '.join(known.item_kinds)}."
    tag = details["ctx"]["tag"]
    near = difflib.get_close_matches(tag, known.item_kinds, n=1)
    mend = f"Did you mean `{near[0]}`?" if near else f"There are {', '.join(known.item_kinds)}."
    return f"has kind `{tag}`, which does not exist. {mend}"


_OWN_WORDS = {
    "bool": "should be true or false",
    "int": "should be a whole number",
    "float": "should be a number",
    "string_type": "should be a text",
    "tuple_type": "should be a list, as in [0.2, 0.2]",
    "dict_type": "should be a mapping of names to values, as in {format: 1.0}",
    "model_type": "should be a mapping of options, as in {kind: format}",
}


def _requirement(details: ErrorDetails) -> str:
    kind = details["type"]
    words = _OWN_WORDS.get(kind) or _OWN_WORDS.get(kind.partition("_")[0])
    return words or re.sub(r"^(?:Input|Tuple|String|Dictionary) |(?: after validation).*", "", details["msg"])


def _fixed_length(known: Option) -> int:
    """Number of values of a `tuple[float, float]` option; 0 for every other."""
    if get_origin(known.annotation) is not tuple or known.item_kinds:
        return 0
    return len(get_args(known.annotation))


def _nearest(name: str, known: Iterable[str]) -> str:
    """A sentence with the known name most like `name`, and another that is just as near."""
    scores = {other: _similarity(name, other) for other in known}
    best = max(scores.values(), default=0.0)
    if best < _MIN_SIMILARITY:
        return " `--help` and docs/configuration.md list them all."
    near = sorted((other for other, score in scores.items() if score >= best - _TIE), key=lambda other: -scores[other])
    return f" Did you mean {' or '.join(f'`{other}`' for other in near[:2])}?"


def _similarity(a: str, b: str) -> float:
    """Likeness of the whole names and, as much again, of their last parts, so that a wrong section is seen through."""
    last_a, last_b = a.rpartition(".")[2], b.rpartition(".")[2]
    return 0.5 * _ratio(a, b) + 0.5 * _ratio(last_a, last_b)


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
