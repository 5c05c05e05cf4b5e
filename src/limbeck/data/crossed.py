"""Batches of one text in two cuts, for a student and a teacher with different tokenizers.

They hold what every batch for causal models does (``ids``, ``mask``, ``targets``, ``answer``), in the student's cut,
the same in the teacher's cut under names that begin with ``teacher_``, and what joins the two:

======================================  ========================================================================
``chunk`` b t, ``teacher_chunk`` b s    number of the chunk, from 1, that the target belongs to; 0: to none
``aligned``, ``teacher_aligned``        true where a chunk begins and both have therefore read the same text: as
                                        many on both sides of a row, so the mask counts chunks as well as places
``paired``, ``teacher_paired``          true at the first supervised places of both sides, as many as the side with
                                        fewer has: pairing by order, as Universal Logit Distillation does
======================================  ========================================================================

A chunk counts only if all of its tokens are supervised on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.core.batch import Batch, next_token_batch
from limbeck.core.check import require
from limbeck.core.track import say
from limbeck.data.align import Cut, agree, cuts, join, mark, silent, words
from limbeck.data.chats import as_chat, is_chat
from limbeck.data.laid_out import chat_cuts
from limbeck.data.pairs import as_pair, has_pairs, say_fitted
from limbeck.data.read import read_rows, read_text
from limbeck.data.stream import Batches, lengths_mask, pad
from limbeck.data.turns import use_template


class Side(NamedTuple):
    """One cut of a row: ids, which are predicted, and the chunk that the token after each belongs to."""

    ids: np.ndarray
    keep: np.ndarray
    chunk: np.ndarray


class Row(NamedTuple):
    """One text in two cuts."""

    ours: Side
    theirs: Side


def crossed_batches(source: str | Path, ours: Any, theirs: Any, length: int, batch: int, seed: int = 0) -> Batches:
    """``data.pairs.causal_batches`` for a student that reads by ``ours`` and a teacher that reads by ``theirs``.

    No row is longer than ``length`` tokens on either side. Raises ``LimbeckError`` for a tokenizer that cannot be
    aligned, and where no row agrees anywhere.
    """
    if has_pairs(source):
        return row_batches(supervised_rows(source, ours, theirs, length), batch, seed)
    return row_batches(list(text_rows(read_text(source), ours, theirs, length)), batch, seed)


def row_batches(rows: Sequence[Row], batch: int, seed: int = 0) -> Batches:
    """Batches of ``rows``, padded on the right to the longest of each side."""
    require(
        any(row.ours.chunk.any() for row in rows),
        "the student's and the teacher's cut agree nowhere in this text, so there is nothing to compare; check that "
        "both tokenizers read its language, and that some of it is supervised",
    )
    return Batches(rows, collate, batch, seed)


def supervised_rows(source: str | Path, ours: Any, theirs: Any, length: int) -> list[Row]:
    """Conversations and pairs of ``source`` (``data.pairs.read_supervised``); what is learned is compared.

    Each side lays conversations out by its own chat template. One that is too long for a side is cut there at its end,
    and left out where a side has no answer left; it is said how many.
    """
    made, long, gone = list[Row](), 0, 0
    for where, one in read_rows(source):
        if not is_chat(one):
            made.append(_pair_row(one, ours, theirs, length, where))
            continue
        for tokenizer, whose in ((ours, "student"), (theirs, "teacher")):
            if note := use_template(tokenizer):
                say(f"{source}: {note} ({whose})")
        cuts = chat_cuts(as_chat(one, where), ours, theirs)
        long += any(len(cut.ids) > length for cut in cuts)
        both = row(*(_part(cut, 0, length) for cut in cuts))
        if both.ours.keep.any() and both.theirs.keep.any():
            made.append(both)
        else:
            gone += 1
    say_fitted(len(made), long, gone, length, str(source))
    return made


def _pair_row(one: dict[str, Any], ours: Any, theirs: Any, length: int, where: str) -> Row:
    """A prompt, on each side as its tokenizer begins a text, and a completion that both have."""
    prompts = [as_pair(one, tokenizer, length, where).prompt for tokenizer in (ours, theirs)]
    texts = [words(tokenizer, one["completion"]) for tokenizer in (ours, theirs)]
    parts = zip(prompts, texts, closing(ours, theirs), strict=True)
    return row(*(join([silent(prompt), text, end]) for prompt, text, end in parts))


def text_rows(texts: Iterable[str], ours: Any, theirs: Any, length: int) -> Iterator[Row]:
    """Running text: documents joined by the end-of-text token and parted into windows where both cuts agree.

    As ``data.stream.lm_batches`` does it, whose windows these are if both tokenizers are the same. The tokens are held
    in memory.
    """
    texts, ends = list(texts), closing(ours, theirs)
    require(texts, "the corpus holds no text; give at least one document")
    mine, other = (
        join([part for cut in cuts(tokenizer, texts) for part in (cut, end)])
        for tokenizer, end in zip((ours, theirs), ends, strict=True)
    )
    places = np.concatenate([[[-1, -1]], agree(mine, other)])
    first, last = 0, len(places) - 1
    while first < last:
        room = [np.searchsorted(places[:, side], places[first, side] + length, "right") for side in (0, 1)]
        after = int(min(room)) - 1
        full = after < last or (places[last] - places[first]).max() == length
        if after > first and (full or first == 0):
            yield _row(*(_part(cut, *places[[first, after], side] + 1) for side, cut in enumerate((mine, other))))
        first = max(after, first + 1)  # a chunk that is longer than a row is left out


def closing(ours: Any, theirs: Any) -> tuple[Cut, Cut]:
    """What ends a text on both sides: a common mark if both tokenizers have one, else each side's own affair."""
    ids = [[] if t.eos_token_id is None else [t.eos_token_id] for t in (ours, theirs)]
    end = mark if all(ids) else silent
    return end(ids[0], True), end(ids[1], True)


def row(ours: Cut, theirs: Cut) -> Row:
    """The row of two cuts that were made of the same parts (see ``align.join``)."""
    require(
        ours.size == theirs.size,
        f"two cuts of one text have to read the same, but one ends at byte {ours.size} and the other at {theirs.size}",
    )
    return _row(ours, theirs)


def collate(rows: Sequence[Row]) -> Batch:
    """The batch of ``rows``."""
    ids = [row.ours.ids for row in rows]
    keep = pad([row.ours.keep for row in rows]).bool()
    return beside(next_token_batch(pad(ids), lengths_mask(ids), keep), rows)


def beside(batch: Batch, rows: Sequence[Row]) -> Batch:
    """``batch``, made of the student's side of ``rows`` by whatever collate, with the teacher's side beside it."""
    width, ids = batch["ids"].shape[1], [row.theirs.ids for row in rows]
    keep = pad([row.theirs.keep for row in rows]).bool()
    theirs = next_token_batch(pad(ids), lengths_mask(ids), keep)
    theirs |= _joints([row.theirs for row in rows], rows, keep.shape[1])
    ours = _joints([row.ours for row in rows], rows, width)
    return batch | ours | {f"teacher_{name}": value for name, value in theirs.items()}


def teacher_side(batch: Batch) -> Batch:
    """What the teacher reads of a batch: its own cut, or all of a batch that has one cut for both."""
    if "teacher_ids" not in batch:
        return batch
    return {name.removeprefix("teacher_"): value for name, value in batch.items() if name.startswith("teacher_")}


def _joints(sides: Sequence[Side], rows: Sequence[Row], width: int) -> dict[str, Tensor]:
    """``chunk``, ``aligned`` and ``paired`` of one side."""
    chunk = pad([side.chunk for side in sides], 0, width)
    before = torch.cat([torch.zeros_like(chunk[:, :1]), chunk[:, :-1]], 1)
    kept = pad([np.append(side.keep[1:], False) for side in sides], 0, width)
    most = torch.tensor([min(int(side.keep[1:].sum()) for side in row) for row in rows])
    paired = kept.bool() & (kept.cumsum(1) <= most[:, None])
    return {"chunk": chunk, "aligned": (chunk > 0) & (chunk != before), "paired": paired}


def _row(ours: Cut, theirs: Cut) -> Row:
    places = agree(ours, theirs)
    chunks = [_chunks(len(cut.ids), places[:, side]) for side, cut in enumerate((ours, theirs))]
    partial = np.zeros(len(places) + 1, bool)  # by number of the chunk: whether a part of it is not supervised
    for cut, chunk in zip((ours, theirs), chunks, strict=True):
        partial[chunk[:-1][~cut.keep[1:]]] = True
    sides = (
        Side(cut.ids, cut.keep, chunk * ~partial[chunk]) for cut, chunk in zip((ours, theirs), chunks, strict=True)
    )
    return Row(*sides)


def _chunks(length: int, places: np.ndarray) -> np.ndarray:
    """For each place, the number of the chunk that its target belongs to; 0 before the first and from the last on."""
    number = np.searchsorted(places, np.arange(length), "right")
    return np.where(number == len(places), 0, number).astype(np.int32)


def _part(cut: Cut, first: int, after: int) -> Cut:
    return Cut(cut.ids[first:after], cut.ends[first:after], cut.keep[first:after], cut.size)
