"""Rows of supervised text as batches: padded on the right, or several texts packed in one row.

Packing loses nothing: models keep the texts of a row apart (``segment``, see ``sources.segments``), so loss and
gradients are those of padded rows, without the padding.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from limbeck.core.batch import Batch, next_token_batch
from limbeck.core.check import require
from limbeck.data.stream import Batches, lengths_mask, pad


class Row(NamedTuple):
    """A text: token ids t (int32), and which of them are to be predicted, t (bool; never the first)."""

    ids: np.ndarray
    keep: np.ndarray

    @property
    def size(self) -> int:
        """How many tokens it has."""
        return len(self.ids)


def row(ids: Sequence[int], keep: Sequence[bool] | np.ndarray) -> Row:
    """A ``Row`` of lists; nothing stands before the first token that could predict it."""
    kept = np.asarray(keep, dtype=bool)
    kept[:1] = False
    return Row(np.asarray(ids, dtype=np.int32), kept)


def row_batches(rows: Sequence[Row], batch: int, seed: int = 0) -> Batches:
    """Batches ``ids``, ``mask``, ``targets``, ``answer`` b t, padded on the right to their longest row."""
    return Batches(rows, _padded, batch, seed)


def packed_batches(rows: Sequence[Row], length: int, batch: int, seed: int = 0) -> Batches:
    """The same with ``segment`` b t (1, 2 ... per text, 0 at padding): rows of at most ``length`` hold several texts.

    Which texts share a row depends on their sizes and the seed alone.
    """
    long = max((one.size for one in rows), default=0)
    require(long <= length, f"a text of {long} tokens does not fit a packed row of {length}; make rows longer")
    order = np.random.default_rng([seed, 3]).permutation(len(rows)).tolist()  # else the file's order shows in the rows
    bins = pack([rows[i].size for i in order], length)
    return Batches([tuple(rows[order[i]] for i in one) for one in bins], _packed, batch, seed)


def repacked(stream: Batches, length: int) -> Batches:
    """``stream`` of padded rows (``row_batches``, perhaps a part of it) as ``packed_batches`` of the same texts."""
    require(
        stream.collate is _padded,
        "only rows with texts of their own can be packed; running text fills its rows, and pairs of an "
        "encoder-decoder have rows of their own; leave packing out",
    )
    return packed_batches([stream.rows[i] for i in range(stream.size or 0)], length, stream.batch, stream.seed)


def pack(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Which texts share a row of at most ``length`` tokens: the longest first, each where it fits best, in n log n.

    About 11/9 of the fewest possible rows at worst (Johnson 1974, "Near-optimal bin packing algorithms"); where most
    texts are much shorter than a row, hardly more rows than the tokens need.
    """
    rooms: list[int] = []  # what is left, in order, in the open rows
    open_rows: dict[int, list[list[int]]] = {}
    packed: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = bisect_left(rooms, sizes[index])
        if at == len(rooms):
            room, chosen = length, list[int]()
            packed.append(chosen)
        else:
            room = rooms[at]
            chosen = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[at]
        chosen.append(index)
        left = room - sizes[index]
        if left not in open_rows:
            insort(rooms, left)
        open_rows.setdefault(left, []).append(chosen)
    return packed


def padding(stream: Batches) -> float:
    """Share of the positions of one epoch of ``stream`` (of padded or packed rows) that hold no token."""
    sizes = [_size(stream.rows[i]) for i in stream.order()]
    batches = [sizes[i : i + stream.batch] for i in range(0, len(sizes), stream.batch)]
    return 1 - sum(sizes) / max(1, sum(max(batch) * len(batch) for batch in batches))


def _size(item: Row | tuple[Row, ...]) -> int:
    return item.size if isinstance(item, Row) else sum(one.size for one in item)


def _padded(rows: list[Row]) -> Batch:
    ids = [one.ids for one in rows]
    return next_token_batch(pad(ids), lengths_mask(ids), pad([one.keep for one in rows]).bool())


def _packed(rows: list[tuple[Row, ...]]) -> Batch:
    joined = [Row(np.concatenate([t.ids for t in texts]), np.concatenate([t.keep for t in texts])) for texts in rows]
    numbers = [np.repeat(np.arange(1, len(texts) + 1), [t.size for t in texts]) for texts in rows]
    return _padded(joined) | {"segment": pad(numbers)}
