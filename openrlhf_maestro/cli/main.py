"""The entry point: finds the command, runs it, and turns the errors a user is meant to read into one paragraph."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from rich.console import Console

from openrlhf_maestro import __version__
from openrlhf_maestro.cli.arguments import HELP
from openrlhf_maestro.cli.commands import COMMANDS, Command
from openrlhf_maestro.cli.help import print_options, print_overview
from openrlhf_maestro.errors import MaestroError, UserError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `argv` (default: the process's) and returns the exit code.

    0: done; 1: failed while running (RunError); 2: the command line, configuration or data cannot work (UserError);
    130: interrupted. Any other exception is a bug and passes with its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except MaestroError as error:
        print(f"maestro: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("maestro: interrupted", file=sys.stderr)
        return INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print_overview(Console(stderr=True))
        return UserError.exit_code
    name, *rest = arguments
    if name in HELP:
        print_overview(Console())
        return 0
    if name == "--version":
        print(__version__)
        return 0
    command = COMMANDS.get(name)
    if command is None:
        raise UserError(_unknown_command(name))
    helped = any(argument in HELP for argument in rest)
    if command.config and helped and command.own_help not in rest:
        print_options(Console(), command, command.config)
        return 0
    return _run(command, rest)


def _run(command: Command, arguments: Sequence[str]) -> int:
    exit_code: int = importlib.import_module(command.module).run(arguments)
    return exit_code


def _unknown_command(name: str) -> str:
    nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    mend = f"Did you mean `{nearest[0]}`?" if nearest else f"There are {', '.join(COMMANDS)}."
    return f"`{name}` is not a command. {mend}"
