"""What `--help` prints."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.text import Text

from openrlhf_maestro.cli.commands import COMMANDS, Command
from openrlhf_maestro.config.fields import Option, Section
from openrlhf_maestro.config.reference import default_text, groups, meaning_text

_MAX_WIDTH = 120


def print_overview(console: Console) -> None:
    """The commands, one line each."""
    page = Text("usage: maestro COMMAND [arguments]\n\n")
    width = max(map(len, COMMANDS))
    for command in COMMANDS.values():
        page.append(f"  {command.name.ljust(width)}", style="bold").append(f"  {command.summary}\n")
    page.append("\n`maestro COMMAND --help` explains a command, `maestro --version` prints the version.")
    console.print(page)


def print_options(console: Console, command: Command, cls: type[Section]) -> None:
    """Every option `command` reads, by section: name and default, and its meaning below."""
    page = Text(f"usage: maestro {command.name} {command.usage}\n\n{command.summary} ")
    page.append("Options stand in the YAML file, by section, or here; a switch alone means true.\n")
    for group in groups(cls):
        page.append(
            f"\n{group.name}: {group.title}\n" if group.name else "\nWithout a section\n", style="bold underline"
        )
        for known in group.options:
            page.append_text(_entry(known, min(console.width, _MAX_WIDTH)))
    page.rstrip()
    console.print(page)


def _entry(known: Option, width: int) -> Text:
    # Options of list items have no name on the command line: they stand inside the value of their list.
    name = known.name if "[]" in known.name else f"--{known.name}"
    default = default_text(known)
    unit = f" [{known.unit}]" if known.unit else ""
    meaning = textwrap.fill(
        meaning_text(known) + unit, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
    )
    entry = Text(f"  {name}", style="bold")
    entry.append(f"  {default}" if known.required else f"  (default: {default})", style="not bold cyan")
    return entry.append(f"\n{meaning}\n", style="not bold")
