"""`maestro weights`: a Conductor's continuous weights of any prompt-response pairs."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_maestro.cli.arguments import ArgumentParser
from openrlhf_maestro.errors import DataError, UserError

_COLUMN = "weights"
_DESCRIPTION = """
Write the weights pi(.|h) that a Conductor gives to the reward components of each prompt and response.

--input is JSONL, JSON, CSV or parquet (the rollouts/ of a run, for one) with the columns `prompt` (a text, or a list of
chat messages) and `response` (without its stop token), and `truncated` where some responses were cut. --output has the
same rows in the same order, as JSON lines, each with `weights`. It is written as FILE.partial, line by line, and takes
its name when it is whole.

Texts become tokens as in training: the prompt through the model's chat template with the opening of an answer, the
response, and the EOS token unless the response is `truncated`. Layer and pooling are those the Conductor was trained
with; its last_token is the last one of these.
"""


def run(argv: Sequence[str]) -> int:
    """Writes the weights and prints where they are. Raises UserError for what cannot be read, by row."""
    arguments = _parser().parse_args(argv)

    from openrlhf_maestro.conductor import PairWeights, check_pairs
    from openrlhf_maestro.data.readers import read_file

    if not arguments.input.is_file():
        raise DataError(f"--input: there is no file {arguments.input}.")
    rows = [row for _, row in read_file(arguments.input).numbered]
    _check_columns(arguments.input, rows)
    partial = _begin(arguments.output)
    try:
        pairs = check_pairs((row.get("prompt"), row.get("response"), row.get("truncated")) for row in rows)
        weights = PairWeights(
            arguments.conductor,
            arguments.model,
            batch_size=arguments.batch_size,
            device=arguments.device,
            dtype=arguments.dtype,
            apply_chat_template=arguments.apply_chat_template,
            enable_thinking=arguments.enable_thinking,
            trust_remote_code=arguments.trust_remote_code,
        )
        _write(partial, rows, weights(pairs))
    except DataError as error:
        raise DataError(f"{arguments.input}, {error}") from error
    os.replace(partial, arguments.output)
    print(arguments.output)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="maestro weights", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conductor", metavar="DIR", required=True, help="saved Conductor, such as RUN/conductor")
    parser.add_argument("--model", metavar="DIR", required=True, help="the policy it was trained with: RUN/model")
    parser.add_argument("--input", metavar="FILE", type=Path, required=True, help="the pairs")
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="where to write, JSON lines")
    parser.add_argument("--batch_size", metavar="N", type=_positive, default=8, help="pairs a forward; default 8")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one, else cpu"
    )
    parser.add_argument(
        "--dtype", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 on cuda, fp32 on a CPU"
    )
    parser.add_argument(
        "--apply_chat_template",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="as data.apply_chat_template of the run; default on",
    )
    parser.add_argument(
        "--enable_thinking", action=argparse.BooleanOptionalAction, help="as data.enable_thinking of the run"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="let the model run its own code")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def _check_columns(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = dict.fromkeys(name for row in rows for name in row)
    if not rows:
        raise DataError(f"{file} has no rows.")
    for name in ("prompt", "response"):
        if name not in columns:
            raise DataError(f"{file} has no column `{name}`; the columns are {', '.join(columns)}.")
    if _COLUMN in columns:
        raise DataError(f"{file} has a column `{_COLUMN}` already, where the weights are to stand. Rename it.")


def _begin(output: Path) -> Path:
    """The empty file that becomes `output`. Raises UserError where it cannot be written."""
    partial = output.with_name(output.name + ".partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(b"")
    except OSError as error:
        raise UserError(f"--output: {partial} cannot be written: {error.strerror}.") from error
    return partial


def _write(file: Path, rows: Sequence[Mapping[str, Any]], weights: Iterator[dict[str, float]]) -> None:
    """A line a row, as they are computed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("pairs"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    with file.open("w", encoding="utf-8", buffering=1) as lines, progress:
        task = progress.add_task("pairs", total=len(rows))
        for row, found in zip(rows, weights, strict=True):
            line = _plain(row) | {_COLUMN: found}
            lines.write(json.dumps(line, ensure_ascii=False, allow_nan=False, default=str) + "\n")
            progress.advance(task)


def _plain(value: Any) -> Any:
    """The same with null for every number that is not finite, as in metrics.jsonl."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
