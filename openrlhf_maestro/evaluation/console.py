"""Tables of evaluations on a terminal."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable

from openrlhf_maestro.evaluation.tables import Table


def print_table(console: Console, found: Table) -> None:
    """As a table, or a paragraph a row where that does not fit: squeezed columns cannot be read."""
    shown = RichTable(title=escape(found.title), title_justify="left", box=SIMPLE)
    for title, numbers in zip(found.columns, found.numbers, strict=True):
        shown.add_column(escape(title), justify="right" if numbers else "left")
    for row in found.rows:
        shown.add_row(*map(escape, row))
    if Measurement.get(console, console.options.update(width=10_000), shown).maximum <= console.width:
        console.print(shown)
        return
    console.print(escape(found.title))
    for cells in found.rows:
        rest = (f"{title} {cell}" for title, cell in zip(found.columns[1:], cells[1:], strict=True))
        console.print(escape(f"  {cells[0]}: {', '.join(rest)}"), soft_wrap=True)
