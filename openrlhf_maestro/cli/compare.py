"""`maestro evaluate --compare A B ...`: finished evaluations against a baseline."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from openrlhf_maestro.cli.arguments import HELP, ArgumentParser
from openrlhf_maestro.config.writing import write_atomically
from openrlhf_maestro.errors import UserError

if TYPE_CHECKING:
    from openrlhf_maestro.evaluation.compare import Comparison
    from openrlhf_maestro.evaluation.loading import Evaluation

_DESCRIPTION = """
Compare finished evaluations of the same rows: k of n with Wilson's intervals, paired differences with bootstrap
intervals and exact tests, Holm's correction across data sets. Rows that belong together are kept together.
"""


def run(argv: Sequence[str]) -> int:
    """Prints the tables and writes comparison.md and comparison.json. Raises UserError for what cannot be compared."""
    # Before parsing: without a folder after --compare argparse would miss that first.
    if any(word in HELP for word in argv):
        parser().print_help()
        return 0
    arguments = parser().parse_args(argv)

    from openrlhf_maestro.evaluation.compare import COMPARISON, compare
    from openrlhf_maestro.evaluation.comparison_page import markdown, notes, tables
    from openrlhf_maestro.evaluation.console import print_table
    from openrlhf_maestro.evaluation.loading import load_evaluations

    if len(arguments.compare) < 2:
        raise UserError("--compare needs the folders of two evaluations or more.")
    evaluations = load_evaluations(arguments.compare)
    comparison = compare(
        evaluations,
        baseline=_baseline(arguments.baseline, evaluations),
        common=arguments.common,
        confidence=arguments.confidence,
        seed=arguments.seed,
        resamples=arguments.resamples,
    )
    folder = arguments.output or Path("comparisons") / _folder_name(comparison)
    text = json.dumps(comparison.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _write(folder, {"comparison.md": markdown(comparison), COMPARISON: text})
    console = Console(highlight=False)
    for found in tables(comparison):
        print_table(console, found)
    for note in notes(comparison):
        console.print(escape(note), soft_wrap=True)
    console.print(f"comparison.md and {COMPARISON} are in {escape(str(folder))}", soft_wrap=True)
    return 0


def parser() -> ArgumentParser:
    """Of `maestro evaluate --compare`."""
    made = ArgumentParser(prog="maestro evaluate", description=_DESCRIPTION)
    made.add_argument(
        "--compare", metavar="DIR", type=Path, nargs="+", required=True, help="folders of evaluations, two or more"
    )
    made.add_argument("--baseline", metavar="DIR", help="one of them, by folder or name; default the first")
    made.add_argument("--common", action="store_true", help="leave out rows that not all of them have")
    made.add_argument("--output", metavar="DIR", type=Path, help="where to write; default comparisons/A-vs-B")
    made.add_argument("--confidence", metavar="C", type=_confidence, default=0.95, help="of intervals; default 0.95")
    made.add_argument("--seed", metavar="N", type=_whole_from(0), default=0, help="of all random draws; default 0")
    made.add_argument(
        "--resamples", metavar="N", type=_whole_from(1000), default=10_000, help="of random draws; default 10000"
    )
    return made


def _whole_from(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least}")
        return int(text)

    return whole


def _confidence(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number between 0 and 1, such as 0.95")
    return value


def _baseline(given: str | None, evaluations: Sequence[Evaluation]) -> str | None:
    """The label of the evaluation that was given by its folder; anything else is a label itself."""
    if given is None:
        return None
    folder = Path(given).resolve()
    return next((one.label for one in evaluations if one.folder.resolve() == folder), given)


def _folder_name(comparison: Comparison) -> str:
    """Names of the evaluations, safe as the name of a folder; of many only the first."""
    labels = [re.sub(r"[^\w.-]+", "_", one.label).strip(".") or "_" for one in comparison.evaluations]
    whole = "-vs-".join(labels)
    return whole if len(whole) <= 100 else f"{labels[0][:80]}-vs-{len(labels) - 1}-others"


def _write(folder: Path, files: Mapping[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(folder / name, text)
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be written: {error.strerror}. Name another folder.") from error
