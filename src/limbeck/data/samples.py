"""Samples: lists of ids, a prompt and what was written after it. Between batches and whoever writes text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from limbeck.core.batch import Batch, next_token_batch
from limbeck.core.check import require
from limbeck.data.stream import lengths_mask, pad

Note = int | float | bool | list[float]


@dataclass(frozen=True)
class Sample:
    """Token ids of a ``prompt`` and its ``completion``, which alone is supervised.

    ``source`` is what the encoder of an encoder-decoder reads; its ``prompt`` is then the decoder's start. ``notes``
    are values that travel along: one number per row, or a list with one number per token of the completion.
    """

    prompt: list[int]
    completion: list[int]
    source: list[int] = field(default_factory=list)
    notes: Mapping[str, Note] = field(default_factory=dict)

    def noted(self, **notes: Note) -> Sample:
        """The same row with more notes."""
        return replace(self, notes={**self.notes, **notes})

    def state(self) -> list[Any]:
        """The row as plain lists, for a checkpoint."""
        return [self.prompt, self.completion, self.source, dict(self.notes)]

    @staticmethod
    def of(state: Sequence[Any]) -> Sample:
        """The inverse of ``state``."""
        return Sample(*state)


def samples_of(batch: Batch) -> list[Sample]:
    """The rows of an ordinary batch: ``ids``, ``mask`` and ``answer`` b t, for an encoder-decoder ``encoder_ids`` too.

    The completion is the *last* run of supervised tokens, so that of a conversation the earlier turns belong to the
    prompt; a row without supervised tokens is all prompt. Tensors with one value per row become notes; what else a
    batch holds (targets, masks of its own) depends on the text and is left behind.
    """
    for name in ("ids", "mask", "answer"):
        require(name in batch, f"rows: a batch needs {name!r}, but this one holds only {sorted(batch)}")
    require(
        "segment" not in batch,
        "text by a model needs one prompt per row, but these rows are packed; turn packing off for this method",
    )
    notes = {name: value.tolist() for name, value in batch.items() if value.dim() == 1}
    return [
        _sample(batch, index, {name: values[index] for name, values in notes.items()})
        for index in range(len(batch["ids"]))
    ]


def _sample(batch: Batch, index: int, notes: dict[str, Note]) -> Sample:
    mask = batch["mask"][index].bool()
    ids, answer = batch["ids"][index][mask].tolist(), batch["answer"][index][mask].tolist()
    last = max((place for place, known in enumerate(answer) if known), default=-1)
    first = last
    while first > 0 and answer[first - 1]:
        first -= 1
    source: list[int] = []
    if "encoder_ids" in batch:
        read = batch["encoder_ids"][index]
        source = read[batch["encoder_mask"][index].bool()].tolist() if "encoder_mask" in batch else read.tolist()
    cut = (ids, []) if last < 0 else (ids[: first + 1], ids[first + 1 : last + 2])  # position t predicts token t + 1
    return Sample(*cut, source, notes)


def batch_of(rows: Sequence[Sample]) -> Batch:
    """``ids``, ``mask``, ``targets``, ``answer`` b t, padded on the right; ``encoder_ids`` and ``encoder_mask`` b s.

    Notes become tensors: b where they are numbers; b t float, at the position that predicts each token and 0 elsewhere,
    where they are lists. All rows must have the same notes.
    """
    require(rows, "rows: there is nothing to make a batch of; give at least one row")
    whole = [row.prompt + row.completion for row in rows]
    mask = lengths_mask(whole)
    keep = mask & ~lengths_mask([row.prompt for row in rows], length=mask.shape[1])
    batch = next_token_batch(pad(whole), mask, keep)
    if any(row.source for row in rows):
        sources = [row.source for row in rows]
        batch |= {"encoder_ids": pad(sources), "encoder_mask": lengths_mask(sources)}
    return batch | {name: _noted(rows, name, mask.shape[1]) for name in rows[0].notes}


def _noted(rows: Sequence[Sample], name: str, width: int) -> Tensor:
    values: list[Any] = []
    for row in rows:
        require(name in row.notes, f"rows: some rows have the note {name!r} and some have not; note it for all")
        values.append(row.notes[name])
    if not isinstance(values[0], list):
        return torch.tensor(values)
    out = torch.zeros(len(rows), width)
    for index, (row, value) in enumerate(zip(rows, values, strict=True)):
        require(
            len(value) == len(row.completion),
            f"rows: the note {name!r} has {len(value)} values for {len(row.completion)} tokens; give one per token",
        )
        start = len(row.prompt) - 1
        out[index, start : start + len(value)] = torch.tensor(value)
    return out
