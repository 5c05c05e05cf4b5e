"""Whole numbers as bits, for many at once: fields of any width and unary codes, packed and read without a Python loop.

Bits are numbered from the lowest of the first byte. A unary code of ``n`` is ``n`` zeros and a one; with a field of
``b`` bits it makes a Rice code, which spends about ``b + 1`` bits where numbers are some ``2**b`` in size.
"""

from __future__ import annotations

import numpy as np

WIDEST = 24
"""Bits of the widest field: with the up to 7 bits before it in its first byte it lies in four bytes."""
MASKS = ((1 << np.arange(WIDEST + 1)) - 1).astype(np.uint32)
"""The lowest bits, 0 to ``WIDEST`` of them."""


def pack_fields(values: np.ndarray, widths: np.ndarray | int) -> np.ndarray:
    """The lowest ``widths`` bits of each of ``values`` n, one after the other: bytes, the last filled up with zeros."""
    widths = np.broadcast_to(np.asarray(widths, np.int64), values.shape)
    ends = np.cumsum(widths)
    size = -(-int(ends[-1]) // 8) if len(ends) else 0
    at = ends - widths
    words = (values.astype(np.int64) & ((1 << widths) - 1)) << (at & 7)
    sums = np.zeros(size + 4)
    for byte in range(4):  # no two fields share a bit, so their sum is their union
        sums += np.bincount((at >> 3) + byte, (words >> 8 * byte) & 255, minlength=size + 4)[: size + 4]
    return sums[:size].astype(np.uint8)


def read_fields(data: np.ndarray, widths: np.ndarray, start: int = 0) -> np.ndarray:
    """The fields of ``widths`` n that stand in the bytes ``data`` from bit ``start`` on, as int32.

    ``data`` has to go on for at least four bytes after the last field (see ``padded``).
    """
    at = np.cumsum(widths, dtype=np.int64)
    at += start
    at -= widths
    words = np.ndarray(len(data) - 3, "<u4", data, strides=(1,))  # the four bytes that begin at each byte
    found = words.take(at >> 3)
    at &= 7
    found >>= at.astype(np.uint32)
    found &= MASKS.take(widths)
    return found.view(np.int32)


def padded(data: np.ndarray) -> np.ndarray:
    """``data`` with four zero bytes after it, which ``read_fields`` may look at."""
    return np.concatenate([data, np.zeros(4, np.uint8)])


def pack_unary(values: np.ndarray) -> np.ndarray:
    """Unary codes of ``values`` n, as bytes."""
    ones = np.cumsum(values + 1)
    bits = np.zeros(int(ones[-1]) if len(ones) else 0, np.uint8)
    bits[ones - 1] = 1
    return np.packbits(bits, bitorder="little")


def read_unary(data: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` numbers of the unary codes in the bytes ``data``; fewer where there are fewer."""
    ones = np.flatnonzero(np.unpackbits(data, bitorder="little").view(bool))[:count].astype(np.int32)
    ones[1:] -= ones[:-1] + 1
    return ones


def rice_width(values: np.ndarray) -> int:
    """The field width at which Rice codes of ``values`` take the fewest bits."""
    sizes = [(values >> width).sum() + width * len(values) for width in range(16)]
    return int(np.argmin(sizes))
