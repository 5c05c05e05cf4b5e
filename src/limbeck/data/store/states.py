"""Hidden states of a row as bytes, and back: half precision with a scale for each vector."""

from __future__ import annotations

import struct

import numpy as np

from limbeck.data.store.bits import pack_fields, pack_unary, padded, read_fields, read_unary, rice_width

HEAD = struct.Struct("<IBxxxI")  # positions, width of the Rice codes, length of their unary part


def encode_states(positions: np.ndarray, states: np.ndarray) -> bytes:
    """The block of a row whose ``positions`` n (rising) have the states n layers d, float32.

    Values are half precision relative to the largest of their vector, so none overflows: 2 bytes each, and 4 a vector.
    """
    gap = np.diff(positions, prepend=-1) - 1
    width = rice_width(gap)
    unary, fields = pack_unary(gap >> width), pack_fields(gap, width)
    scale = np.maximum(np.abs(states).max(-1, keepdims=True), 1e-30).astype("<f4")
    parts = [HEAD.pack(len(positions), width, len(unary)), unary.tobytes(), fields.tobytes()]
    return b"".join([*parts, scale.tobytes(), (states / scale).astype("<f2").tobytes()])


def decode_states(block: np.ndarray, layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions n and states n layers d, float32, from a block (bytes as uint8)."""
    count, width, length = HEAD.unpack(block[: HEAD.size].tobytes())
    fields = HEAD.size + length
    begin = fields + -(-count * width // 8)
    gap = read_unary(block[HEAD.size : fields], count) << width
    gap += read_fields(padded(block[fields:begin]), np.full(count, width))
    scales = begin + 4 * count * layers
    scale = block[begin:scales].view("<f4").reshape(count, layers, 1)
    return np.cumsum(gap + 1) - 1, block[scales:].view("<f2").reshape(count, layers, -1).astype(np.float32) * scale
