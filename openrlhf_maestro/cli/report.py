"""`maestro report RUN`: the page of a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openrlhf_maestro.cli.arguments import ArgumentParser
from openrlhf_maestro.errors import UserError


def run(argv: Sequence[str]) -> int:
    """Writes the page and prints where it is. Raises UserError where RUN is not a run directory."""
    parser = ArgumentParser(prog="maestro report", description="Write the page of a run.")
    parser.add_argument("run", metavar="RUN", type=Path, help="run directory, such as runs/maestro")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where to write; default RUN/report.html")
    arguments = parser.parse_args(argv)

    from openrlhf_maestro.report import ReportError, write_report

    try:
        print(write_report(arguments.run, arguments.output))
    except ReportError as error:
        raise UserError(str(error)) from error
    return 0
