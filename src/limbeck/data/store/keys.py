"""What a text is known by in a store: a hash of its token ids under the fingerprint of the tokenizer that cut them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.data.store.shards import KEY

PROBE = "A probe: 12 words, Ünïcode & ends.\nWith lines"


def fingerprint(tokenizer: Any) -> str:
    """A tokenizer's fingerprint: equal where every token has the same id and a probe is split alike."""
    split = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    said = json.dumps([sorted(tokenizer.get_vocab().items()), list(split)], ensure_ascii=False)
    return blake2b(said.encode(), digest_size=16).hexdigest()


class Text(NamedTuple):
    """A text in a batch: its ``row``, where it stands there (``at`` t, rising), which of its positions are ``asked``
    about (t bool), and its ``key``."""

    row: int
    at: np.ndarray
    asked: np.ndarray
    key: bytes


def texts(batch: Batch, mark: str, on: str = "answer") -> Iterator[Text]:
    """The texts of a batch about which something is asked at the true entries of ``batch[on]``, in order.

    A text is a row's real tokens or, with ``batch["segment"]``, each of those that are packed into a row, behind what
    all of them see (segment 0). ``mark`` is the fingerprint of the tokenizer that made the ids.
    """
    require(on in batch, f"a store is asked at {on!r}, but the batch holds only {sorted(batch)}")
    ids, asked = _array(batch["ids"]).astype("<i4"), _array(batch[on]).astype(bool)
    real = _array(batch["mask"]).astype(bool) if "mask" in batch else np.ones(ids.shape, bool)
    asked &= real
    segment = _array(batch["segment"]) if "segment" in batch else np.ones(ids.shape, int)
    for row in np.flatnonzero(asked.any(1)):
        parts = [part for part in np.unique(segment[row, real[row]]) if part != 0] or [0]
        for part in parts:
            own = (segment[row] == part) | ((segment[row] == 0) & (part == parts[0]))
            if (asked[row] & own).any():
                at = np.flatnonzero(real[row] & ((segment[row] == part) | (segment[row] == 0)))
                key = _key(mark, ids[row, at], _beside(batch, int(row), at))
                yield Text(int(row), at, (asked[row] & own)[at], key)


def _key(mark: str, ids: np.ndarray, beside: bytes) -> bytes:
    return blake2b(ids.tobytes() + beside, digest_size=KEY, key=bytes.fromhex(mark)).digest()


def _beside(batch: Batch, row: int, at: np.ndarray) -> bytes:
    """What else the teacher reads: the encoder's tokens, and the types of tokens where there are several."""
    parts = b""
    if "encoder_ids" in batch:
        ids = _array(batch["encoder_ids"])[row].astype("<i4")
        real = _array(batch["encoder_mask"])[row].astype(bool) if "encoder_mask" in batch else np.ones(len(ids), bool)
        parts += b"encoder" + ids[real].tobytes()
    types = _array(batch["types"])[row, at].astype("<i4") if "types" in batch else np.zeros(0, "<i4")
    return parts + (b"types" + types.tobytes() if types.any() else b"")


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
