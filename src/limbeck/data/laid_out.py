"""Conversations in two cuts: each side's chat template lays the same messages out differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from limbeck.data.align import UNKNOWN, Cut, Span, byte_ends


def laid_out(tokenizer: Any, text: str, turns: Sequence[Span], shared: Sequence[Span]) -> Cut:
    """``text``, laid out by this side's template, as ``tokenizer`` cuts it.

    ``turns`` are the characters that are to be predicted, ``shared`` those that both sides have, one in each turn and
    in the same order, such as an answer without what its template puts around it. What follows a shared part within its
    turn ends it: the same mark on both sides, whatever its tokens are.
    """
    said = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, spans = said["input_ids"], said["offset_mapping"]
    read, at = byte_ends(tokenizer, text, ids, spans), _bytes(text)
    ends, keep, size = np.full(len(ids), UNKNOWN, np.int64), np.zeros(len(ids), bool), 0
    for (begin, end), (first, last) in zip(turns, shared, strict=True):
        inner = (read > at[first]) & (read <= at[last])
        ends[inner] = read[inner] - at[first] + size + 2
        ends[read == at[first]] = size + 2
        keep |= (read > at[begin]) & (read <= at[end])
        ends[(read == at[end]) & (end > last)] = size + at[last] - at[first] + 3
        size += at[last] - at[first] + 3
    return Cut(np.asarray(ids, np.int32), ends, keep, size)


def _bytes(text: str) -> list[int]:
    """Where each character of ``text`` begins, and where it ends, in bytes."""
    return [0, *np.cumsum([len(character.encode()) for character in text]).tolist()]
