"""Tables: rows of numbers, or of text, each with a class or a number to predict."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError, require
from limbeck.data.labelled import PAIRS, TEXTS
from limbeck.data.read import existing, read_rows
from limbeck.data.stream import Batches, lengths_mask, pad

TARGETS = ("label", "target", "score", "y")
MOST_CLASSES = 20
Predicted = Literal["auto", "class", "number"]


class Table(NamedTuple):
    """``values`` n f, or instead of them ``texts``; ``truth`` n c: one-hot of ``classes``, or n 1 without them."""

    values: Tensor | None
    texts: list[str] | None
    truth: Tensor
    classes: list[str] | None

    @property
    def numbers(self) -> Tensor:
        """``values``, which have to be there."""
        require(self.values is not None, "the table holds texts; turn them into numbers first")
        assert self.values is not None
        return self.values

    def at(self, rows: Sequence[int]) -> Table:
        """These rows."""
        values = None if self.values is None else self.values[list(rows)]
        texts = None if self.texts is None else [self.texts[row] for row in rows]
        return Table(values, texts, self.truth[list(rows)], self.classes)


def read_table(path: str | Path, target: str | None = None, predicted: Predicted = "auto") -> Table:
    """The table in a ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` or ``.parquet`` file.

    ``target`` is the column to predict, by default the first there is of label, target, score, y. Where there is a
    column of text (text, sentence, ...), the texts are what it is predicted from; else all other columns are, and have
    to hold numbers. ``predicted`` "auto": a class where some target is text, or where all are whole numbers, at most 20
    different ones; a number otherwise.
    """
    rows = list(_rows(existing(path)))
    require(rows, f"{path}: expected a line of column names and rows below it, but there are no rows")
    name = target or next((one for one in TARGETS if one in rows[0][1]), TARGETS[0])
    for where, row in rows:
        require(name in row, f"{where}: the column {name!r} is missing; the row has {', '.join(row)}; name --target")
    truth, classes = _truth([(where, row[name]) for where, row in rows], predicted)
    text = next((one for one in TEXTS if one in rows[0][1] and one != name), None)
    if text is not None:
        return Table(None, [_text(where, row, text) for where, row in rows], truth, classes)
    columns = [column for column in rows[0][1] if column != name]
    require(columns, f"{path}: there is no column besides {name!r} to predict it from")
    values = [[_number(where, row.get(column), column) for column in columns] for where, row in rows]
    return Table(torch.tensor(values, dtype=torch.float64), None, truth, classes)


def parted(table: Table, shares: Sequence[float] = (0.6, 0.2), seed: int = 0) -> list[Table]:
    """Random parts of ``table``, of these ``shares`` and the rest; each has two rows at least."""
    size = len(table.truth)
    order = np.random.default_rng([seed, 11]).permutation(size)
    cuts = [round(sum(shares[: number + 1]) * size) for number in range(len(shares))]
    parts = np.split(order, cuts)
    least = min(map(len, parts))
    require(least >= 2, f"{size} rows are too few to part into {len(parts)} sets; give at least 10")
    return [table.at([int(row) for row in part]) for part in parts]


class Scale(NamedTuple):
    """What ``standardised`` takes off and divides by: of columns f, and of targets c (0 and 1 for classes)."""

    mean: Tensor
    deviation: Tensor
    target_mean: Tensor
    target_deviation: Tensor


def scale_of(table: Table) -> Scale:
    """Means and deviations of ``table``; the deviation of what is constant is 1."""
    plain = torch.zeros_like(table.truth[0]), torch.ones_like(table.truth[0])
    target = plain if table.classes else (table.truth.mean(0), _deviation(table.truth))
    return Scale(table.numbers.mean(0), _deviation(table.numbers), *target)


def standardised(tables: Sequence[Table], scale: Scale | None = None) -> list[Table]:
    """Columns, and targets that are numbers, at mean 0 and deviation 1 over the first table; constant columns at 0."""
    scale = scale or scale_of(tables[0])
    return [
        table._replace(
            values=(table.numbers - scale.mean) / scale.deviation,
            truth=(table.truth - scale.target_mean) / scale.target_deviation,
        )
        for table in tables
    ]


def relabelled(truth: Tensor, share: float, seed: int = 0) -> Tensor:
    """``truth`` n c, one-hot, with a random ``share`` of its rows moved to another class."""
    require(0 <= share < 1, f"--noise {share}: expected a share of the labels from 0 up to 1")
    rng = np.random.default_rng([seed, 13])
    count, classes = truth.shape
    wrong = rng.permutation(count)[: round(share * count)]
    labels = truth.argmax(1)
    labels[wrong] = (labels[wrong] + torch.from_numpy(rng.integers(1, classes, len(wrong)))) % classes
    return torch.eye(classes, dtype=truth.dtype)[labels]


def table_batches(values: Tensor, truth: Tensor, batch: int, seed: int = 0) -> Batches:
    """Batches ``values`` b f and ``truth`` b c, float32."""

    def collate(rows: list[tuple[Tensor, Tensor]]) -> Batch:
        values, truth = (torch.stack(column) for column in zip(*rows, strict=True))
        return {"values": values, "truth": truth}

    return Batches(list(zip(values.float(), truth.float(), strict=True)), collate, min(batch, len(values)), seed)


def plain_batches(texts: Sequence[str], tokenizer: Any, batch: int = 64, length: int = 128) -> Iterator[Batch]:
    """``ids`` and ``mask`` b t of ``texts`` in their order, cut at ``length`` tokens; no text is left out."""
    for start in range(0, len(texts), batch):
        rows = tokenizer(list(texts[start : start + batch]), truncation=True, max_length=length)["input_ids"]
        yield {"ids": pad(rows, tokenizer.pad_token_id or 0), "mask": lengths_mask(rows)}


def _deviation(values: Tensor) -> Tensor:
    found = values.std(0, correction=0)
    return torch.where(found > 1e-12, found, 1.0)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows with the place where each stands."""
    if path.suffix not in (".csv", ".tsv"):
        yield from read_rows(path)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            columns = next(reader, [])
            for cells in filter(None, reader):  # empty lines are no rows
                where = f"{path}:{reader.line_num}"
                require(
                    len(cells) == len(columns),
                    f"{where}: expected {len(columns)} cells, as in line 1; got {len(cells)}",
                )
                yield where, dict(zip(columns, cells, strict=True))
    except UnicodeDecodeError:
        raise LimbeckError(f"{path}: expected UTF-8 text, but some byte is not; convert the file") from None
    except csv.Error as error:
        raise LimbeckError(f"{path}: expected a table of cells, but it cannot be read: {error}") from None


def _truth(cells: list[tuple[str, Any]], predicted: Predicted) -> tuple[Tensor, list[str] | None]:
    numbers = [_parsed(cell) for _, cell in cells]
    different = sorted({value for value in numbers if value is not None})
    few = len(different) <= MOST_CLASSES and all(value.is_integer() for value in different)
    if predicted == "number" or (predicted == "auto" and None not in numbers and not few):
        return torch.tensor([[_number(where, cell, "target")] for where, cell in cells], dtype=torch.float64), None
    names = [str(cell) for _, cell in cells]
    empty = next((where for where, cell in cells if cell is None or cell == ""), None)
    require(empty is None, f"{empty}: the class to predict is missing")
    classes = sorted(set(names), key=lambda name: (_parsed(name) is None, _parsed(name) or 0.0, name))
    require(len(classes) > 1, f"expected rows of two classes at least, but all are {classes[0]!r}")
    return torch.eye(len(classes), dtype=torch.float64)[[classes.index(name) for name in names]], classes


def _text(where: str, row: dict[str, Any], name: str) -> str:
    texts = [row.get(name), *(row[pair] for pair in PAIRS if pair in row)][:2]
    require(all(isinstance(text, str) for text in texts), f"{where}: the column {name!r} must hold text")
    return " ".join(texts)


def _number(where: str, cell: Any, column: str) -> float:
    value = _parsed(cell)
    if value is None:
        raise LimbeckError(f"{where}: the column {column!r} must hold numbers, but got {cell!r}; leave the column out")
    return value


def _parsed(cell: Any) -> float | None:
    """The cell as a finite number; None if it is none."""
    try:
        value = None if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        return None
    return value if value is not None and abs(value) < float("inf") else None
