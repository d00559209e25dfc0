"""The reference of every option, read from the schema: docs/configuration.md and the tables of `--help`.

`python -m openrlhf_maestro.config.reference` rewrites the page of a checkout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from openrlhf_maestro.config import yaml12
from openrlhf_maestro.config.evaluate import EvaluateConfig
from openrlhf_maestro.config.fields import Option, Section, options, subsections
from openrlhf_maestro.config.lab import LabConfig
from openrlhf_maestro.config.prepare import PrepareConfig
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.config.serve import ServeConfig
from openrlhf_maestro.config.sft import SftConfig

CONFIGURED: dict[str, type[Section]] = {
    "prepare": PrepareConfig,
    "train": MaestroConfig,
    "sft": SftConfig,
    "evaluate": EvaluateConfig,
    "serve-rewards": ServeConfig,
    "lab": LabConfig,
}
PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

_INTRODUCTION = """\
# Configuration

This page is generated from the schema (`python -m openrlhf_maestro.config.reference`); do not edit it by hand.

A configuration is a YAML file of sections, changed by dotted options on the command line:

```bash
maestro train --config my_run.yaml --rollout.batch_size 32 --train.colocate_all --actor.eps_clip_low_high '[0.2, 0.28]'
```

- A value follows after a space or `=`. Text is taken as it stands, everything else is read as YAML: `'[0.2, 0.28]'`,
  `'{format: 1.0}'`, `null`. A switch alone means `true`. Of an option given twice the last value counts.
- The file is read by YAML 1.2's rules: `1e-5` is a number, `no` is a text. A key written twice is an error.
- `extends: other.yaml` at the top of a file takes over another file, whose path is relative to this one's folder and
  which may extend a third: sections are merged option by option, lists and mappings replaced whole.
- Unknown options (the error names the nearest one), wrong values and combinations that cannot work end the command with
  exit code 2 before anything is loaded.
- The resolved configuration of a run is in its `config.yaml`, which is a configuration again.

*Source* says where a default comes from: the MAESTRO paper, the OpenRLHF version this project is built on, or *ours*.
"""


@dataclass(frozen=True)
class Group:
    """The options directly inside a section; `name` is empty at the top level, ends in [] for the items of a list."""

    name: str
    title: str
    options: tuple[Option, ...]


def groups(cls: type[Section], name: str = "") -> Iterator[Group]:
    """The sections of `cls` that hold options, in the order of declaration, each with the sections inside it."""
    prefix = f"{name}." if name else ""
    own = tuple(options(cls, prefix, deep=False))
    if own:
        yield Group(name, (cls.__doc__ or "").strip(), own)
    for known in own:
        yield from _item_groups(known)
    for child, nested in subsections(cls).items():
        yield from groups(nested, prefix + child)


def _item_groups(known: Option) -> Iterator[Group]:
    """The options that the kinds of a list's items share, then those that each has of its own."""
    prefix = f"{known.name}[]."
    kinds = {kind: {own.name: own for own in options(section, prefix)} for kind, section in known.item_kinds.items()}
    if not kinds:
        return
    shared = set.intersection(*(set(own) for own in kinds.values()))
    first = next(iter(kinds.values()))
    of_all = {name: own for name, own in first.items() if name in shared}
    kind = replace(of_all[f"{prefix}kind"], annotation=Literal[tuple(kinds)], required=True)  # type: ignore[valid-type]
    yield Group(f"{known.name}[]", "An item of the list.", tuple((of_all | {kind.name: kind}).values()))
    for name, own in kinds.items():
        of_kind = tuple(option for option in own.values() if option.name not in shared)
        if of_kind:
            yield Group(f"{known.name}[] (kind: {name})", (known.item_kinds[name].__doc__ or "").strip(), of_kind)


def default_text(known: Option) -> str:
    """The default as one would write it in YAML."""
    if known.required:
        return "required"
    value = known.default
    if known.item_kinds:
        value = [{"kind": item.kind} for item in value]
    return yaml12.dump_inline(list(value) if isinstance(value, tuple) else value)


def meaning_text(known: Option) -> str:
    """The meaning, followed by the values it may have where the meaning does not name them all."""
    choices = [str(choice) for choice in known.choices]
    if all(choice in known.meaning for choice in choices):
        return known.meaning
    return f"{known.meaning} ({' | '.join(choices)})"


def page() -> str:
    """The whole of docs/configuration.md."""
    parts = [_INTRODUCTION]
    written: list[Group] = []
    for command, cls in CONFIGURED.items():
        parts.append(f"## `maestro {command}`\n")
        for group in groups(cls):
            if group in written:  # an item of a list that another command has too
                continue
            written.append(group)
            parts.append(f"### `{group.name}`\n\n{group.title}\n" if group.name else "### Top level\n")
            parts.append(_table(group))
    return "\n".join(parts)


def _table(group: Group) -> str:
    lines = ["| option | default | unit | meaning | source |", "| --- | --- | --- | --- | --- |"]
    for known in group.options:
        default = "**required**" if known.required else f"`{default_text(known)}`"
        cells = (f"`{known.name}`", default, known.unit, _escaped(meaning_text(known)), _escaped(known.source))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Markdown would take <name> for a tag and *_x for emphasis."""
    for character in "<*_":
        text = text.replace(character, f"\\{character}")
    return text


def write_page(path: Path = PAGE) -> None:
    """Writes the page anew."""
    path.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write_page()
