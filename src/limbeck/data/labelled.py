"""Texts, or pairs of texts, with a class: rows for classifiers, some of which may lack the class."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from limbeck.core.batch import IGNORE, Batch
from limbeck.core.check import one_of, require
from limbeck.data.read import field, files, lines, read_jsonl
from limbeck.data.stream import Batches, lengths_mask, pad

PAIRS = ("pair", "sentence2", "hypothesis", "text2")
TEXTS = ("text", "sentence", "sentence1", "premise", "text1")


class Row(NamedTuple):
    """A text, perhaps with a second one, and the name of its class; None where nobody has said it."""

    text: str
    pair: str | None = None
    label: str | None = None


class Rows(NamedTuple):
    """Rows to learn from and rows to be judged on; no row is in both."""

    train: list[Row]
    test: list[Row]


def read_labelled(path: str | Path) -> list[Row]:
    """The rows of a ``.jsonl`` or ``.tsv`` file, or of all of them in a folder.

    JSON: ``text`` (or ``sentence``, ``sentence1``, ``premise``), a second text as ``pair`` (or ``sentence2``,
    ``hypothesis``), ``label`` a string or a whole number, absent or null where there is none. Tab-separated: text, then
    perhaps a second text, and the label last.
    """
    return [row for file in files(path, (".jsonl", ".tsv")) for row in _READ[file.suffix](file)]


def classes_in(rows: Sequence[Row]) -> list[str]:
    """The names of the classes, sorted; numbers by their value. There have to be two at least."""
    found = {row.label for row in rows if row.label is not None}
    require(
        len(found) > 1, f"expected rows of two classes at least, but the labels are {sorted(found) or 'all absent'}"
    )
    return sorted(found, key=lambda name: (int(name), "") if name.isdecimal() else (len(found) ** 9, name))


def part(rows: Sequence[Row], share: float = 0.2, most: int = 1000, seed: int = 0) -> Rows:
    """Part a random ``share`` of the labelled rows, ``most`` at most, to judge by; the rest trains."""
    order = np.random.default_rng([seed, 7]).permutation(len(rows))
    known = sum(row.label is not None for row in rows)
    require(known or not rows, f"none of the {len(rows)} rows has a class; give some a label to learn and judge by")
    count = min(int(share * known), most)
    test = {int(i) for i in [i for i in order if rows[i].label is not None][:count]}
    require(0 < count < len(rows), f"{len(rows)} rows are too few to part some to judge by; give at least 10")
    return Rows([row for i, row in enumerate(rows) if i not in test], [rows[i] for i in sorted(test)])


def with_labels(rows: Rows, number: int | None) -> Rows:
    """``rows`` of which only the first ``number`` labels to learn from are kept; None: all."""
    if number is None:
        return rows
    require(number >= 2, f"--labels {number}: expected 2 or more")
    keep = set([i for i, row in enumerate(rows.train) if row.label is not None][:number])
    return rows._replace(train=[row if i in keep else row._replace(label=None) for i, row in enumerate(rows.train)])


def labelled_batches(
    rows: Sequence[Row],
    classes: Sequence[str],
    tokenizer: Any,
    length: int,
    batch: int,
    seed: int = 0,
    types: bool = False,
    mixup: float | None = None,
    shuffle: bool = True,
) -> Batches:
    """Batches ``ids``, ``mask`` b t, ``labels`` b (``IGNORE`` without one) and ``labelled`` b, true where there is one.

    Rows are cut at ``length`` tokens. ``types`` adds which of two texts a token belongs to. ``mixup`` doubles a batch
    by rows that ``sources.mixed`` blends with others (``other_ids`` b t, ``share`` b), the share drawn once per batch
    from Beta(mixup, mixup); they count as unlabelled.
    """
    require(rows, "there are no rows to classify; check the data")
    numbers = {name: index for index, name in enumerate(classes)}
    for row in rows:
        if row.label is not None:
            one_of(row.label, numbers, "label")
    pairs = None if all(row.pair is None for row in rows) else [row.pair or "" for row in rows]
    coded = tokenizer(
        [row.text for row in rows], pairs, truncation=True, max_length=length, return_token_type_ids=types
    )
    labels = [IGNORE if row.label is None else numbers[row.label] for row in rows]
    marks = coded["token_type_ids"] if types else [None] * len(rows)
    items = list(zip(coded["input_ids"], labels, marks, strict=True))

    def collate(items: list[Any], rng: np.random.Generator) -> Batch:
        ids, labels, marks = (list(column) for column in zip(*items, strict=True))
        said = torch.tensor(labels)
        made = {"ids": pad(ids, tokenizer.pad_token_id or 0), "mask": lengths_mask(ids)}
        made |= {"labels": said, "labelled": said != IGNORE} | ({"types": pad(marks)} if types else {})
        return made if mixup is None else _mixed(made, mixup, rng)

    return Batches(items, collate, batch, seed, shuffle, draws=True)


def _mixed(batch: Batch, beta: float, rng: np.random.Generator) -> Batch:
    """The batch and, below it, its rows blended with each other."""
    size, share = len(batch["ids"]), rng.beta(beta, beta)
    order = torch.from_numpy(rng.permutation(size))
    both = {name: torch.cat([value, value]) for name, value in batch.items()}
    both["mask"] = torch.cat([batch["mask"], batch["mask"] | batch["mask"][order]])
    both["labelled"] = torch.cat([batch["labelled"], torch.zeros(size, dtype=torch.bool)])
    both["other_ids"] = torch.cat([batch["ids"], batch["ids"][order]])
    both["share"] = torch.cat([torch.ones(size), torch.full((size,), float(share))])
    return both


def _jsonl(path: Path) -> Iterator[Row]:
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        name = next((key for key in TEXTS if key in row), "text")
        second = next((field(row, key, str, where) for key in PAIRS if key in row), None)
        label = row.get("label")
        plain = label is None or isinstance(label, str | int)
        require(plain, f"{where}: the field 'label' must be a string or a whole number, but got {label!r}")
        yield Row(field(row, name, str, where), second, None if label is None else str(label))


def _tsv(path: Path) -> Iterator[Row]:
    for number, line in lines(path):
        cells = next(csv.reader([line], delimiter="\t", quoting=csv.QUOTE_NONE))
        require(
            len(cells) in (2, 3), f"{path}:{number}: expected text, perhaps a second text, and a label, parted by tabs"
        )
        yield Row(cells[0], cells[1] if len(cells) == 3 else None, cells[-1] or None)


_READ = {".jsonl": _jsonl, ".tsv": _tsv}


def in_turn(stream: Batches, size: int = 64) -> list[Batch]:
    """All rows of ``stream`` once, in their order."""
    rows = [stream.rows[number] for number in range(stream.size or 0)]
    rng = np.random.default_rng(0)
    return [stream.collate(rows[start : start + size], rng) for start in range(0, len(rows), size)]
