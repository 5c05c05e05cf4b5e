"""Damaged demonstrations and noisy labels, to see what a method relies on.

Each takes a row, the rows of its task and a generator, and returns the row changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from limbeck.core.check import LimbeckError
from limbeck.data.templates import Example

Ablation = Callable[[Example, Sequence[Example], np.random.Generator], Example]


def random_label(row: Example, rows: Sequence[Example], rng: np.random.Generator) -> Example:
    """The row with an answer drawn uniformly from its options, or with another row's where it has none.

    The draw may give the true answer.
    """
    answers = row.options or [rows[int(rng.integers(len(rows)))].output]
    return replace(row, output=answers[int(rng.integers(len(answers)))])


def wrong_label(row: Example, rows: Sequence[Example], rng: np.random.Generator) -> Example:
    """The row with a false answer: one of its other options, or another row's different output where it has none."""
    answers = row.options or [other.output for other in rows]
    for i in rng.permutation(len(answers)):
        if answers[i] != row.output:
            return replace(row, output=answers[i])
    raise LimbeckError(f"task {row.task!r} knows one answer only, {row.output!r}, so no label is wrong")


ABLATIONS: dict[str, Ablation] = {
    "none": lambda row, rows, rng: row,
    "no_label": lambda row, rows, rng: replace(row, output=""),
    "no_input": lambda row, rows, rng: replace(row, input=""),
    "random_label": random_label,
    "wrong_label": wrong_label,
}
