"""Result tables: mean over seeds with a 95 % confidence interval, on the screen, as Markdown and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from scipy.stats import t as student_t

from limbeck.core.check import require


class Summary(NamedTuple):
    """A mean, the half-width of its 95 % confidence interval (None for one value), and the number of values."""

    mean: float
    half: float | None
    number: int


def summary(values: Iterable[float], level: float = 0.95) -> Summary:
    """Mean and Student's t interval of independent ``values`` (seeds): mean +- t s / sqrt(n), s with n - 1."""
    values = [float(value) for value in values]
    require(values, "a summary needs at least one value")
    number = len(values)
    mean = math.fsum(values) / number
    if number == 1:
        return Summary(mean, None, 1)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (number - 1))
    return Summary(mean, float(student_t.ppf((1 + level) / 2, number - 1)) * spread / math.sqrt(number), number)


class Table:
    """Rows (methods) by columns (partitions, costs), each cell one value per seed.

    Rows and columns stand in the order in which they were first added; a cell that was never filled shows a dash.
    """

    def __init__(self, title: str, corner: str = "", digits: int = 3) -> None:
        self.title, self.corner, self.digits = title, corner, digits
        self.cells: dict[str, dict[str, list[float]]] = {}

    def add(self, row: str, column: str, values: float | Iterable[float]) -> Table:
        """Put one value or one per seed into a cell, behind those that are there. Returns the table."""
        new = [float(values)] if isinstance(values, int | float) else [float(value) for value in values]
        require(
            all(map(math.isfinite, new)), f"the table's cell {row} / {column} got a value that is not finite: {new}"
        )
        self.cells.setdefault(row, {}).setdefault(column, []).extend(new)
        return self

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(dict.fromkeys(column for cells in self.cells.values() for column in cells))

    def text(self, row: str, column: str) -> str:
        """A cell as text: the mean, and the half-width of its interval where there are several seeds."""
        values = self.cells.get(row, {}).get(column)
        if not values:
            return "-"
        mean, half, _ = summary(values)
        return _number(mean, self.digits) + ("" if half is None else f" ± {_number(half, self.digits)}")

    def markdown(self) -> str:
        """The table in Markdown, with its title above."""
        head = [self.corner, *self.columns]
        lines = [head, ["---", *("---:" for _ in self.columns)]]
        lines += [[row, *(self.text(row, column) for column in self.columns)] for row in self.cells]
        return f"{self.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def data(self) -> dict[str, Any]:
        """The table for JSON: per cell the values, mean and half-width of the interval."""
        rows = {
            row: {name: _cell(values) for name, values in cells.items() if values} for row, cells in self.cells.items()
        }
        return {"title": self.title, "rows": rows}

    def print(self, console: Any = None) -> None:
        """Print with rich."""
        from rich.console import Console
        from rich.table import Table as Rich

        view = Rich(title=self.title)
        view.add_column(self.corner, no_wrap=True)
        for column in self.columns:
            view.add_column(column, justify="right")
        for row in self.cells:
            view.add_row(row, *(self.text(row, column) for column in self.columns))
        (console or Console()).print(view)


def _cell(values: list[float]) -> dict[str, Any]:
    mean, half, _ = summary(values)
    return {"values": values, "mean": mean, "half": half}


def _number(value: float, digits: int) -> str:
    """Fixed digits for scores; thousands separated and no decimals for large counts such as FLOPs."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"
