"""A row's log-probabilities as a few bytes per token, and back.

Each supervised position of a row keeps its best tokens and what the others share (``Kept``). A row becomes one block::

    head       12 bytes: positions, widths of the Rice codes, tokens per position, length of the unary part
    planes     per position: log-probability of the best token, of the rest, and the span of the kept ones; tokens per
               position where they differ; log Z and coefficients where the book has directions
    unary      gaps between positions | gaps between buckets | distances from the least kept log-probability
    fields     the same three: low bits; place within the bucket; low bits

Log-probabilities are kept as whole steps of 1/20 nat below the best one, which is kept to 1/4096 nat: each is within
1/40 nat, before all are shifted together (by less, and mostly far less) so that they and the rest make 1. Tokens more
than 32 nats below the best are counted among the rest. A set of tokens has no order, so none is stored.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from limbeck.core.check import require
from limbeck.data.store.bits import WIDEST, pack_fields, pack_unary, padded, read_fields, read_unary, rice_width
from limbeck.data.store.book import Book

HEAD = struct.Struct("<IBBHI")
FINE, STEPS, SPAN = 2048, 20, 640
"""Steps per nat of single log-probabilities and of distances; the longest distance in steps."""
NONE = 65535
"""Stands for a rest of nothing."""
MOST = 4096
"""Tokens that a position may keep."""


class Kept(NamedTuple):
    """What is kept of n positions.

    ``ids`` n k and their ``log_p`` n k, -inf where a position keeps fewer; ``rest`` n, log of what the others have
    together; ``tilt`` n r int8 and ``reach`` n, how they share it (see ``Book``; ``reach`` is log Z, and read only
    where r is not 0).
    """

    ids: np.ndarray
    log_p: np.ndarray
    rest: np.ndarray
    tilt: np.ndarray
    reach: np.ndarray


def encode(positions: np.ndarray, kept: Kept, book: Book) -> bytes:
    """The block of a row whose supervised ``positions`` n (rising) keep ``kept``."""
    count, top = kept.ids.shape
    require(0 < top <= MOST, f"a store keeps 1 to {MOST} tokens per position, but was asked for {top}")
    best, distance, rest = _quantised(kept)
    held = distance <= SPAN
    numbers = held.sum(1)
    span = np.where(held, distance, 0).max(1)
    place = np.where(held, book.place[np.where(held, kept.ids, 0)], book.size + np.arange(top))
    order = np.argsort(place, 1)
    flat = np.arange(top) < numbers[:, None]  # the held ones come first
    place, distance = (np.take_along_axis(values, order, 1)[flat] for values in (place, distance))
    bucket, low, widths = _bucketed(place, numbers, book)
    below, gap = np.repeat(span, numbers) - distance, np.diff(positions, prepend=-1) - 1
    first, last = rice_width(gap), rice_width(below)
    unary = pack_unary(np.concatenate([gap >> first, bucket, below >> last]))
    fields = pack_fields(
        np.concatenate([gap, low, below]),
        np.concatenate([np.full(count, first), widths, np.full(len(below), last)]),
    )
    same = int(numbers[0]) if (numbers == numbers[0]).all() else 0
    planes = [best.astype("<u2"), rest.astype("<u2"), span.astype("<u2")]
    planes += [] if same else [numbers.astype("<u2")]
    planes += [kept.reach.astype("<f2"), kept.tilt.astype(np.int8)] if book.tilts else []
    head = HEAD.pack(count, first, last, same, len(unary))
    return b"".join([head, *(plane.tobytes() for plane in planes), unary.tobytes(), fields.tobytes()])


def _quantised(kept: Kept) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best log-probability n, distances from it n k (above ``SPAN`` where a token is not kept) and rest n, in steps."""
    log_p = kept.log_p.astype(np.float64)
    highest = log_p.max(1)
    require(np.isfinite(highest).all(), "a position keeps no token at all; each needs one that can be said")
    best = np.clip(np.round(-highest * FINE), 0, NONE)
    with np.errstate(over="ignore"):
        distance = np.round(np.minimum((-best[:, None] / FINE - log_p) * STEPS, SPAN + 1)).clip(0).astype(np.int64)
    lost = np.where((distance > SPAN) & np.isfinite(log_p), np.exp(log_p), 0).sum(1)
    with np.errstate(divide="ignore"):
        rest = np.log(np.exp(kept.rest.astype(np.float64)) + lost)
    rest = np.where(np.isneginf(rest), NONE, np.clip(np.round(-rest * FINE), 0, NONE - 1))
    return best.astype(np.int64), distance, rest.astype(np.int64)


def _bucketed(place: np.ndarray, numbers: np.ndarray, book: Book) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of places that rise within each position: gaps between buckets, places within the bucket, and their widths."""
    starts, widths = _buckets(book, int(numbers.max()))
    bucket = np.searchsorted(starts, place, "right") - 1
    gap = np.diff(bucket, prepend=0)
    begins = np.cumsum(numbers) - numbers
    gap[begins] = bucket[begins]
    return gap, place - starts[bucket], widths[bucket]


def _buckets(book: Book, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and width of each bucket: the book's own, or equal ones where it has none."""
    if len(book.widths):
        return book.starts, book.widths
    width = max(book.size // max(top, 1), 1).bit_length() - 1
    starts = np.arange(0, book.size, 1 << width)
    return starts, np.full(len(starts), width, np.uint8)


def decode(block: np.ndarray, book: Book) -> tuple[np.ndarray, Kept]:
    """Positions and what they keep, from a block (bytes as uint8).

    Where a position keeps fewer tokens than another, its last ids are its first again and their ``log_p`` is -inf.
    """
    count, first, last, same, length = HEAD.unpack(block[: HEAD.size].tobytes())
    planes = _Planes(block, HEAD.size)
    best, rest = planes.take("<u2", count), planes.take("<u2", count)
    span = planes.take("<u2", count).astype(np.int64)
    numbers = np.full(count, same) if same else planes.take("<u2", count).astype(np.int64)
    reach = planes.take("<f2", count if book.tilts else 0).astype(np.float32)
    tilt = planes.take("i1", count * book.tilts).reshape(count, book.tilts)
    total = int(numbers.sum())
    unary = read_unary(planes.take("u1", length), count + 2 * total)
    gap, bucket, below = np.split(unary, [count, count + total])
    starts, sizes = _buckets(book, int(numbers.max()))
    bucket = _running(bucket, numbers)
    widths = np.concatenate([np.full(count, first, np.uint8), sizes.take(bucket), np.full(total, last, np.uint8)])
    low_gap, low, low_below = np.split(read_fields(padded(planes.left()), widths), [count, count + total])
    positions = np.cumsum((gap << first) + low_gap + 1) - 1
    ids = book.order.take(starts.take(bucket) + low)
    distance = np.repeat(span, numbers) - ((below << last) + low_below)
    log_p = -np.repeat(best / FINE, numbers) - distance / STEPS
    return positions, _assembled(ids, log_p, rest, tilt, reach, numbers)


def _running(gaps: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Running sums of ``gaps`` that begin anew with each group of ``numbers`` entries."""
    sums = np.cumsum(gaps)
    begins = np.cumsum(numbers) - numbers
    return sums - np.repeat(sums[begins] - gaps[begins], numbers)


def _assembled(
    ids: np.ndarray, log_p: np.ndarray, rest: np.ndarray, tilt: np.ndarray, reach: np.ndarray, numbers: np.ndarray
) -> Kept:
    """Flat lists as n k, shifted so that what is kept and the rest make 1."""
    count, top = len(numbers), int(numbers.max())
    if (numbers == top).all():
        ids, log_p = ids.reshape(count, top), log_p.reshape(count, top)
    else:
        there = np.arange(top) < numbers[:, None]
        begins = np.cumsum(numbers) - numbers
        ids, log_p = (
            ids[np.where(there, np.cumsum(there).reshape(there.shape) - 1, begins[:, None])],
            _put(log_p, there),
        )
    rest = np.where(rest == NONE, -np.inf, -rest.astype(np.float32) / FINE)
    log_p = log_p + (np.log(-np.expm1(rest.clip(max=-1e-7))) - np.log(np.exp(log_p).sum(1)))[:, None]
    return Kept(ids, log_p.astype(np.float32), rest.astype(np.float32), tilt, reach)


def _put(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """``values`` where ``there`` n k is true, -inf elsewhere."""
    out = np.full(there.shape, -np.inf)
    out[there] = values
    return out


class _Planes:
    """Takes arrays off the front of a block."""

    def __init__(self, block: np.ndarray, start: int) -> None:
        self.block, self.at = block, start

    def take(self, kind: str, count: int) -> np.ndarray:
        """The next ``count`` numbers of ``kind``."""
        size = count * np.dtype(kind).itemsize
        part = self.block[self.at : self.at + size]
        self.at += size
        return part.view(kind)

    def left(self) -> np.ndarray:
        """What has not been taken."""
        return self.block[self.at :]


def check_vocabulary(size: int) -> None:
    """Refuse a vocabulary whose ids do not fit into a field."""
    require(size < 1 << WIDEST, f"a store holds vocabularies below {1 << WIDEST} tokens, but this one has {size}")
