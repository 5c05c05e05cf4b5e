"""One file of a store: blocks of bytes under keys, written whole or not at all, checked, and read one block at a time.

A shard is a safetensors file with ``blocks``, the bytes of all blocks one after the other, their ``starts``, their
CRC-32 ``sums`` and their ``keys`` of 16 bytes. It is mapped into memory: only the blocks that are asked for are read.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.core.check import LimbeckError, require
from limbeck.core.save import save_tensors

KEY = 16
"""Bytes of a key."""
SAID = "store"
"""The one entry of the metadata: several are written in any order."""
INDEX = {"keys": "u1", "starts": "<i8", "sums": "<i8"}
AGAIN = "run the same limbeck teach again, which writes it anew"


def write_shard(path: Path, blocks: Iterable[tuple[bytes, bytes]], tokens: int = 0) -> None:
    """Write the shard ``path`` from keys and blocks, whole or not at all; a pair that comes twice is kept once.

    ``tokens``: of how many supervised tokens the blocks tell.
    """
    pairs = list(dict.fromkeys(blocks))
    keys = np.frombuffer(b"".join(key for key, _ in pairs), np.uint8).reshape(-1, KEY)
    starts = np.cumsum([0, *(len(block) for _, block in pairs)], dtype="<i8")
    sums = np.asarray([zlib.crc32(block) for _, block in pairs], "<i8")
    arrays = {"blocks": np.frombuffer(b"".join(block for _, block in pairs), np.uint8)}
    arrays |= {"keys": keys, "starts": starts, "sums": sums}
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    save_tensors(path, tensors, {SAID: json.dumps({"index": _sum(keys, starts, sums), "tokens": tokens})})


def _sum(*arrays: np.ndarray) -> str:
    return str(zlib.crc32(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)))


class Shard:
    """A shard on disk; its index is in memory. ``LimbeckError`` where it is missing, cut or changed.

    ``size`` and ``head``: the bytes that the file has to have, and the CRC-32 of its header, where they are known.
    """

    def __init__(self, path: Path, size: int | None = None, head: int | None = None) -> None:
        self.path = path
        require(path.is_file(), f"{path}: this shard of the store is missing; {AGAIN}")
        there = path.stat().st_size
        require(size is None or there == size, f"{path}: this shard is {there} bytes long instead of {size}; {AGAIN}")
        try:
            raw, begin = _head(path)
            self.head, said = zlib.crc32(raw), json.loads(raw)
            keys, self.starts, self.sums = (_part(path, said, begin, *part) for part in INDEX.items())
            self.keys = keys.reshape(-1, KEY)
            self.begin, end = (begin + offset for offset in said["blocks"]["data_offsets"])
            more = json.loads(said["__metadata__"][SAID])
            self.tokens = int(more["tokens"])
            whole = more["index"] == _sum(self.keys, self.starts, self.sums) and head in (None, self.head)
        except (ValueError, KeyError, TypeError):
            whole, end = False, 0
        require(whole and end - self.begin == self.starts[-1], self._broken("its index"))

    def __len__(self) -> int:
        return len(self.keys)

    def block(self, number: int) -> np.ndarray:
        """The bytes of block ``number``, checked against their sum."""
        begin, end = self.begin + self.starts[number], self.begin + self.starts[number + 1]
        found = np.array(_mapped(self)[begin:end])
        if zlib.crc32(found.tobytes()) != self.sums[number]:
            raise LimbeckError(self._broken(f"block {number}"))
        return found

    def check(self) -> None:
        """Read every block."""
        for number in range(len(self)):
            self.block(number)

    def _broken(self, what: str) -> str:
        return f"{self.path}: {what} is not what was written to this shard (its checksum differs); {AGAIN}"


@lru_cache(128)
def _mapped(shard: Shard) -> np.ndarray:
    """The file, mapped; the last ones that were used stay open."""
    return np.memmap(shard.path, mode="r")


def _head(path: Path) -> tuple[bytes, int]:
    """The header of a safetensors file, and the byte at which its data begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > path.stat().st_size:
            raise ValueError
        return file.read(length), 8 + length


def _part(path: Path, said: Mapping[str, Any], start: int, name: str, kind: str) -> np.ndarray:
    begin, end = said[name]["data_offsets"]
    with path.open("rb") as file:
        file.seek(start + begin)
        return np.frombuffer(file.read(end - begin), kind)
