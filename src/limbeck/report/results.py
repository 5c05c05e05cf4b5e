"""Measured tables, one value per seed and cell, as sections of a report."""

from __future__ import annotations

from limbeck.evaluation.table import Table as Measured
from limbeck.evaluation.table import summary
from limbeck.report.sections import Cell, Spread, Table


def results_table(measured: Measured, note: str = "Mean ± half of the 95 % interval over seeds.") -> Table:
    """``measured`` as a section: each cell the mean of its values and, where there are several, its interval."""
    rows = [[row, *(_cell(measured.cells[row].get(column)) for column in measured.columns)] for row in measured.cells]
    return Table(measured.title, [measured.corner, *measured.columns], rows, note, measured.digits)


def _cell(values: list[float] | None) -> Cell:
    if not values:
        return None
    mean, half, _ = summary(values)
    return mean if half is None else Spread(mean, half)
