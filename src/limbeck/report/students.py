"""Students beside their teacher: how near they are, which is nearer, and what each costs; as tables and as numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from limbeck.analyses.agreement import MEASURES, ByRow, Interval, agreement, difference, interval
from limbeck.analyses.cost import megabytes, parameters, tokens_per_second
from limbeck.core.batch import Batch
from limbeck.core.signals import Source
from limbeck.data.crossed import teacher_side
from limbeck.report.sections import Cell, Section, Spread, Table
from limbeck.report.terminal import print_table
from limbeck.sources.model import model_source
from limbeck.teachers import heard

COLUMNS = {"kl": "KL to the teacher", "top1": "same first token", "nll": "negative log-likelihood"}
ROWS = {"held_out": "held-out rows", "training_rows": "rows of the training data"}
NOTE = "± half of the 95 % bootstrap interval over rows."


Near = Callable[[Source | None], ByRow]


class Contest:
    """Students and their ``teacher``, measured on the same supervised ``batches``; all in eval mode.

    The rows that count are drawn anew for every interval. ``name`` says what the rows are, as in ``data.held``.
    ``near`` measures a source, or the teacher (None); by default per token, for one tokenizer (``crossing.Across``).
    """

    def __init__(self, teacher: Any, batches: Sequence[Batch], name: str, near: Near | None = None) -> None:
        self.batches, self.name, self.near = batches, name, near or _per_token(heard(teacher), batches)
        self.found: dict[str, ByRow] = {"teacher": self.near(None)}
        self.costs: dict[str, dict[str, float]] = {}
        if isinstance(teacher, nn.Module):  # what is read from a store costs next to nothing
            self.costs["teacher"] = self._cost(teacher, [*map(teacher_side, batches)])

    def enter(self, name: str, student: Any, price: bool = True) -> Any:
        """Measure ``student``, and what it costs if ``price``; returns it."""
        self.found[name] = self.near(model_source(student))
        if price:
            self.costs[name] = self._cost(student, self.batches)
        return student

    def metrics(self) -> dict[str, Any]:
        """Everything as plain values: means with the ends of their intervals."""
        intervals = {
            name: {measure: interval(rows, measure)._asdict() for measure in rows.sums}
            for name, rows in self.found.items()
        }
        gaps = {
            f"{one}_minus_{other}": {
                name: difference(self.found[one], self.found[other], name)._asdict() for name in COLUMNS
            }
            for one, other in self._rivals()
        }
        return {self.name: intervals | gaps, "cost": self.costs}

    def sections(self) -> list[Section]:
        """The tables of a report."""
        rivals = [gap(one, other, self.found) for one, other in self._rivals()]
        return [standing(self.found, self.name), *rivals, prices(self.costs, "teacher")]

    def print(self) -> None:
        """The same tables on the terminal."""
        if os.environ.get("RANK", "0") == "0":
            for table in self.sections():
                assert isinstance(table, Table)
                print_table(replace(table, note=""))

    def _rivals(self) -> list[tuple[str, str]]:
        """The first student that was priced against each later one."""
        first, *others = [name for name in self.costs if name != "teacher"] or [""]
        return [(first, other) for other in others]

    def _cost(self, model: Any, batches: Sequence[Batch]) -> dict[str, float]:
        return {
            "parameters": parameters(model),
            "megabytes": megabytes(model),
            "tokens_per_second": tokens_per_second(model_source(model), batches),
        }


def _per_token(teacher: Source, batches: Sequence[Batch]) -> Near:
    def near(student: Source | None) -> ByRow:
        return agreement(teacher, None, batches) if student is None else agreement(student, teacher, batches)

    return near


def standing(models: Mapping[str, ByRow], rows: str) -> Table:
    """One row per model: the measures with their intervals, and the perplexity."""
    cells: list[list[Cell]] = [
        [name, *(_cell(found, measure) for measure in COLUMNS), math.exp(min(found.mean("nll"), 50))]
        for name, found in models.items()
    ]
    count = len(next(iter(models.values())).tokens)
    title = f"Students and teacher on {count} {ROWS.get(rows, rows)}"
    note = f"{'; '.join(f'{COLUMNS[name]}: {MEASURES[name]}' for name in COLUMNS)}. {NOTE}"
    return Table(title, ["", *COLUMNS.values(), "perplexity"], cells, note)


def gap(one: str, other: str, models: Mapping[str, ByRow]) -> Table:
    """``one`` minus ``other`` on the same rows, and whether the interval leaves 0 out."""
    found = {name: difference(models[one], models[other], name) for name in COLUMNS}
    cells: list[list[Cell]] = [
        [COLUMNS[name], Spread(value.mean, value.half), value.low, value.high, _verdict(name, value, one, other)]
        for name, value in found.items()
    ]
    note = "Both models on the same rows, drawn together: 95 % bootstrap interval of the difference."
    return Table(f"{one} minus {other}", ["", "difference", "from", "to", "better"], cells, note)


def prices(costs: Mapping[str, Mapping[str, float]], reference: str) -> Table:
    """Size and speed of each model, and how many times smaller and faster than ``reference``, if that is among them."""
    columns, base = ["", "million parameters", "MB", "tokens a second"], costs.get(reference)
    cells: list[list[Cell]] = [
        [name, cost["parameters"] / 1e6, cost["megabytes"], cost["tokens_per_second"]] for name, cost in costs.items()
    ]
    if base is not None:
        columns += ["times smaller", "times faster"]
        for row, cost in zip(cells, costs.values(), strict=True):
            row += [
                base["parameters"] / cost["parameters"],
                cost["tokens_per_second"] / base["tokens_per_second"],
            ]
    return Table("Size and speed", columns, cells, "Tokens a second: one forward pass of the measured rows.", 2)


def _cell(found: ByRow, measure: str) -> Cell:
    if measure not in found.sums:
        return None
    value = interval(found, measure)
    return Spread(value.mean, value.half)


def _verdict(name: str, value: Interval, one: str, other: str) -> str:
    if value.low <= 0 <= value.high:
        return "not told apart"
    return one if (value.mean > 0) == (name == "top1") else other
