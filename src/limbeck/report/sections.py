"""What a report is made of: plain values that a page draws and a terminal prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Spread(NamedTuple):
    """A mean and the half-width of its interval, shown as ``mean ± half``."""

    mean: float
    half: float


Cell = str | int | float | Spread | None
Points = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Text:
    """Paragraphs of plain text, parted by empty lines."""

    title: str
    text: str


@dataclass(frozen=True)
class KeyValues:
    """Names and values in two columns; a nested mapping becomes dotted names."""

    title: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """Columns and rows of cells. ``digits`` decimals are kept of floats; a cell that is None stays empty."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    digits: int = 3


def before_and_after(title: str, before: Mapping[str, Cell], after: Mapping[str, Cell], note: str = "") -> Table:
    """What training changed: a row for each name measured, in the order of ``before``."""
    return Table(title, ("", "before", "after"), [(name, value, after[name]) for name, value in before.items()], note)


@dataclass(frozen=True)
class Curve:
    """Lines over a common x axis: ``series`` maps a name to x and y values; those that are not finite are left out."""

    title: str
    series: Mapping[str, Points]
    xlabel: str = "step"
    ylabel: str = ""
    log: bool = False


@dataclass(frozen=True)
class Worked:
    """One worked example: what was shown, what was asked, and what each method answered.

    ``demos`` pairs of input and output; ``answers`` method -> answer; ``right`` method -> verdict, by default
    whether the answer equals ``expected`` but for outer white space.
    """

    query: str
    expected: str
    answers: Mapping[str, str]
    demos: Sequence[tuple[str, str]] = ()
    task: str = ""
    right: Mapping[str, bool] = field(default_factory=dict)

    def verdict(self, method: str) -> bool:
        """Whether ``method`` was right."""
        return self.right.get(method, self.answers[method].strip() == self.expected.strip())


@dataclass(frozen=True)
class Examples:
    """Worked examples under one heading."""

    title: str
    items: Sequence[Worked]
    note: str = ""


Section = Text | KeyValues | Table | Curve | Examples
