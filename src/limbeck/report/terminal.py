"""A report's tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as Drawn

from limbeck.report.sections import Spread, Table
from limbeck.report.values import show


def print_table(table: Table, console: Console | None = None) -> None:
    """Print ``table`` as wide as it needs to be, numbers to the right; title above, note below."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    drawn = Drawn(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(table.columns):
        numeric = any(isinstance(row[number], int | float | Spread) for row in table.rows)
        drawn.add_column(name, justify="right" if numeric else "left")
    for row in table.rows:
        drawn.add_row(*(show(cell, table.digits) for cell in row))
    if table.title:
        console.print(table.title, style="bold")
    console.print(drawn)
    if table.note:
        console.print(table.note, style="dim")
