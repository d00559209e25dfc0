"""`maestro prepare`: a published data set to train.jsonl, validation.jsonl, test.jsonl and a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.config.prepare import PrepareConfig

_ROWS_A_TICK = 500


def run(argv: Sequence[str]) -> int:
    """Writes the files and prints what was kept and dropped. Raises UserError for what cannot be read or written."""
    config = load_config(PrepareConfig, argv)

    from openrlhf_maestro.data.prepare import prepare

    columns = (SpinnerColumn(), TextColumn("rows read, checked and written"), TextColumn("{task.completed:,}"))
    stderr = Console(stderr=True)
    with Progress(
        *columns, TimeElapsedColumn(), console=stderr, transient=True, disable=not stderr.is_terminal
    ) as progress:
        task = progress.add_task("rows", total=None)
        rows = count(1)

        def on_row() -> None:
            if (read := next(rows)) % _ROWS_A_TICK == 0:
                progress.update(task, completed=read)

        prepared = prepare(config, on_row)
    console = Console(highlight=False)
    console.print(_table(prepared.card))
    for note in prepared.notes:
        console.print(f"[bold]Note:[/bold] {escape(note)}", soft_wrap=True)
    console.print(f"licence: {prepared.card['licence']}", soft_wrap=True, markup=False)
    console.print(f"{prepared.folder}/", soft_wrap=True, markup=False)
    return 0


def _table(card: Mapping[str, Any]) -> Table:
    table = Table(title=f"{escape(card['title'])}, seed {card['seed']}", title_justify="left")
    table.add_column("rows")
    table.add_column("number", justify="right")
    table.add_row("read", f"{card['read']:,}")
    for reason, rows in card.get("dropped", {}).items():
        table.add_row(f"  dropped: {reason}", f"{rows:,}")
    table.add_section()
    for split, written in card["splits"].items():
        table.add_row(f"{split}: {written['file']}", f"{written['rows']:,}")
    table.add_row("kept", f"{card['kept']:,}")
    return table
