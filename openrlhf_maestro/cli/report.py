"""`maestro report RUN ...`: the page of a run directory, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openrlhf_maestro.cli.arguments import ArgumentParser
from openrlhf_maestro.errors import UserError

INTERVAL_S = 10


def run(argv: Sequence[str]) -> int:
    """Writes the page and prints where it is. Raises UserError for what is no run, or a page that cannot be written."""
    arguments = _parser().parse_args(argv)
    if arguments.interval_s is not None and not arguments.watch:
        raise UserError("--interval_s has no effect without --watch: give --watch too, or leave it out.")
    interval_s: int = INTERVAL_S if arguments.interval_s is None else arguments.interval_s
    if interval_s < 1:
        raise UserError(f"--interval_s is {interval_s}: give whole seconds, 1 or more.")
    folders: list[Path] = arguments.runs

    from openrlhf_maestro.report import Extras, all_finished, watch, write_comparison, write_report

    def write(refresh_s: int | None) -> Path:
        extras = Extras(arguments.evaluations, arguments.comparison, refresh_s)
        if len(folders) == 1:
            return write_report(folders[0], arguments.output, extras)
        return write_comparison(folders, arguments.output, extras)

    if not arguments.watch:
        print(write(None))
        return 0

    def rewrite(again: bool) -> None:
        page = write(interval_s if again else None)
        print(f"{page}{'' if again else ', the last time: finished'}", flush=True)

    sources = [*folders, *arguments.evaluations, *([arguments.comparison] if arguments.comparison else [])]
    watch(sources, rewrite, lambda: all_finished(folders), interval_s)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="maestro report", description="Write the page of a run, or of several runs.")
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run directory, such as runs/maestro")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="where to write; default RUN/report.html, of several runs report.html in this folder",
    )
    parser.add_argument(
        "--evaluations",
        metavar="DIR",
        type=Path,
        nargs="+",
        default=[],
        help="folders that `maestro evaluate` wrote, to be shown too",
    )
    parser.add_argument(
        "--comparison", metavar="DIR", type=Path, help="folder that `maestro evaluate --compare` wrote, to be shown too"
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="write the page again whenever files change, until the runs are finished",
    )
    parser.add_argument(
        "--interval_s", metavar="N", type=int, help=f"with --watch: seconds between two looks; default {INTERVAL_S}"
    )
    return parser
