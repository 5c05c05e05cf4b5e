"""Rows that a student never trains on, to measure it by."""

from __future__ import annotations

from typing import NamedTuple

import torch

from limbeck.core.batch import Batch, to_device
from limbeck.core.check import require
from limbeck.data.stream import Batches


class Split(NamedTuple):
    """A stream to train on and batches to measure on; ``held_out`` is false where data was too short to part."""

    stream: Batches
    batches: list[Batch]
    held_out: bool

    @property
    def name(self) -> str:
        """What the measured rows are, for metrics and tables."""
        return "held_out" if self.held_out else "training_rows"

    @property
    def rows(self) -> str:
        """The same in words, for titles."""
        return "held-out rows" if self.held_out else "training rows"

    def on(self, device: torch.device) -> list[Batch]:
        """The batches to measure on, on ``device``."""
        return [to_device(batch, device) for batch in self.batches]


def hold_out(stream: Batches, share: float = 0.05, most: int = 16) -> Split:
    """Part the last ``share`` of the stream's rows, in whole batches, from 1 to ``most`` of them.

    A stream with rows for fewer than four batches is not parted: it is measured on what it is trained on.
    """
    require(stream.size, "an endless stream has no last rows to hold out; measure on a stream of its own")
    rows, size = [stream.rows[i] for i in range(stream.size or 0)], stream.batch
    count = min(max(1, int(len(rows) * share) // size), most)
    parted = len(rows) >= 4 * size
    cut = len(rows) - count * size if parted else len(rows)
    held = _part(stream, rows[cut:] or rows, shuffle=False).take(count if parted else max(1, len(rows) // size))
    return Split(_part(stream, rows[:cut], shuffle=stream.shuffle), held, parted)


def _part(stream: Batches, rows: list, shuffle: bool) -> Batches:
    alike = stream.size_of if shuffle else None
    return Batches(rows, stream.collate, stream.batch, stream.seed, shuffle, stream.draws, alike)
