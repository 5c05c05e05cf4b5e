"""Two cuts of one text: after which tokens both have read the same bytes.

A *cut* is a row of ids with, for each, how far the text has been read once it is read: a count of bytes, or
``UNKNOWN``. Bytes, not characters, tell apart the halves of a character that byte-level tokenizers part. Where both
cuts have read the same they *agree*. What lies between two such places is a *chunk*: one or several tokens on either
side that spell the same text and cannot be parted further.

What two models may be compared by there:

- Where both agree, both predict what follows the same text, and the distributions over the next *token* can be compared
  by what tokens spell (``data.spelling``). That is approximate: a token ``th`` of a vocabulary that also has ``the``
  does not stand for all texts that begin with ``th``.
- The probability of a chunk after the text before it is the product of the conditional probabilities of its tokens,
  first to last. That is exact for the cut at hand; the same text cut in other ways has a share that is left out.

Places are exact for byte-level BPE, SentencePiece (byte pieces too) and WordPiece. A tokenizer that changes a text
before it cuts it (NFC, NFKC, lower case, no accents) says which characters a token comes from; what it drops, such as
an accent, belongs to the token before it, but white space to none. A token that comes from a part of a character that
it does not spell has no known place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any, NamedTuple

import numpy as np

from limbeck.core.check import require
from limbeck.data.spelling import spelling

UNKNOWN = -1
Span = tuple[int, int]  # characters of a token


class Cut(NamedTuple):
    """A row of ``ids``, how far each has read (``ends``), and which are to be predicted (``keep``): arrays.

    ``ends`` counts in a text that the other cut has too, whatever each puts around it; ``size`` is where it ends. A
    text begins at ``start``: 1 for a tokenizer that puts a space of its own in front of it, 2 for all others, because
    what the two predict there is not the same; 0 where there is no text.
    """

    ids: np.ndarray
    ends: np.ndarray
    keep: np.ndarray
    size: int
    start: int = 0


def words(tokenizer: Any, text: str, keep: bool = True) -> Cut:
    """A ``text`` that both sides have, as ``tokenizer`` cuts it, without special tokens."""
    return next(cuts(tokenizer, [text], keep))


def cuts(tokenizer: Any, texts: Iterable[str], keep: bool = True, at_once: int = 1000) -> Iterator[Cut]:
    """``words`` of many texts."""
    spelling(tokenizer)  # refuses what cannot be compared
    source = iter(texts)
    while part := list(islice(source, at_once)):
        said = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for text, ids, spans in zip(part, said["input_ids"], said["offset_mapping"], strict=True):
            ends = byte_ends(tokenizer, text, ids, spans)
            start = 1 if _own_space(tokenizer, text, ids) else 2
            yield _cut(ids, np.where(ends == UNKNOWN, UNKNOWN, ends + 2), keep, len(text.encode()) + 2, start)


def mark(ids: Sequence[int], keep: bool = True) -> Cut:
    """Tokens that mean the same on both sides though their ids differ, such as the one that ends a text."""
    return _cut(ids, [UNKNOWN] * (len(ids) - 1) + [1], keep, 1)


def silent(ids: Sequence[int], keep: bool = False) -> Cut:
    """Tokens that this side alone has, such as those of its chat template."""
    return _cut(ids, [UNKNOWN] * len(ids), keep, 0)


def join(parts: Sequence[Cut]) -> Cut:
    """The parts of a row one after the other. Both sides need the same ``words`` and ``mark`` parts, in one order.

    Whatever stands before a text is a place: there the text's beginning is predicted.
    """
    bases = [0, *accumulate(part.size for part in parts)]
    ends = [np.where(part.ends == UNKNOWN, UNKNOWN, part.ends + base) for part, base in zip(parts, bases, strict=False)]
    before: np.ndarray | None = None
    for part, base, each in zip(parts, bases, ends, strict=False):
        if part.start and before is not None:
            before[-1] = base + part.start
        before = each if len(each) else before
    ids, keep = (np.concatenate([part[field] for part in parts]) for field in (0, 2))
    return Cut(ids, np.concatenate(ends), keep, bases[-1], parts[0].start)


def agree(ours: Cut, theirs: Cut) -> np.ndarray:
    """Pairs (ours, theirs) of tokens after which both have read the same: n 2, both columns rising.

    Two cuts that are one and the same agree after every token, also where its place in the text is unknown.
    """
    if np.array_equal(ours.ids, theirs.ids) and np.array_equal(ours.ends, theirs.ends):
        return np.stack([np.arange(len(ours.ids))] * 2, 1)
    (our_ends, mine), (their_ends, other) = _last(ours.ends), _last(theirs.ends)
    _, i, j = np.intersect1d(our_ends, their_ends, assume_unique=True, return_indices=True)
    return np.stack([mine[i], other[j]], 1)


def byte_ends(tokenizer: Any, text: str, ids: Sequence[int], spans: Sequence[Span]) -> np.ndarray:
    """Bytes of ``text`` read after each of ``ids``, which come from the characters ``spans``; or ``UNKNOWN``.

    The ids may stop before the text does.
    """
    pieces = [spelling(tokenizer).pieces[i] for i in ids]
    whole, spelled = text.encode(), b"".join(piece or b"" for piece in pieces)
    for own in (b"", b" ") if None not in pieces else ():
        if (own + whole).startswith(spelled):
            return np.cumsum([len(piece or b"") for piece in pieces], dtype=np.int64) - len(own)
    return _from_characters(text, pieces, spans)


def _from_characters(text: str, pieces: Sequence[bytes | None], spans: Sequence[Span]) -> np.ndarray:
    """``byte_ends`` where the tokens do not spell the text as it stands."""
    at = [0, *accumulate(len(character.encode()) for character in text)]
    ends = np.full(len(spans), UNKNOWN, dtype=np.int64)
    for first, last in _overlapping(spans):
        start, stop = min(span[0] for span in spans[first:last]), max(span[1] for span in spans[first:last])
        inner = _within(text[start:stop].encode(), pieces[first:last])
        ends[first : last - 1] = [UNKNOWN if end == UNKNOWN else at[start] + end for end in inner[:-1]]
        limit = spans[last][0] if last < len(spans) else len(text)
        while stop < limit and not text[stop].isspace():  # dropped, so it belongs to what stands before it
            stop += 1
        ends[last - 1] = UNKNOWN if _trimmed(pieces[last - 1], text[:stop]) else at[stop]
    return ends


def _overlapping(spans: Sequence[Span]) -> Iterator[Span]:
    """First and last (excluded) of the groups of tokens that share characters with the next."""
    first, stop = 0, 0
    for i, span in enumerate(spans):
        if i and span[0] >= stop:
            yield first, i
            first = i
        stop = max(stop, span[1])
    if spans:
        yield first, len(spans)


def _within(span: bytes, pieces: Sequence[bytes | None]) -> list[int]:
    """Bytes of ``span`` read after each of the pieces that spell it, if they do, perhaps behind spaces of their own."""
    whole = b"".join(piece or b"" for piece in pieces)
    extra = len(whole) - len(span)
    if None in pieces or not whole.endswith(span) or whole[:extra].strip(b" "):
        return [UNKNOWN] * len(pieces)
    return [max(0, end - extra) for end in accumulate(len(piece or b"") for piece in pieces)]


def _trimmed(piece: bytes | None, read: str) -> bool:
    """Whether a token ends in white space that its characters leave out."""
    return bool(piece and piece != piece.rstrip() and not read[-1:].isspace())


def _own_space(tokenizer: Any, text: str, ids: Sequence[int]) -> bool:
    """Whether the tokenizer has put a space in front of the text."""
    piece = spelling(tokenizer).pieces[ids[0]] if len(ids) else None
    return piece is not None and len(piece) - len(piece.lstrip(b" ")) > len(text) - len(text.lstrip(" "))


def _last(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every known place and the last token that ends there; one that falls behind an earlier one is left out."""
    index = np.flatnonzero((ends != UNKNOWN) & (ends == np.maximum.accumulate(ends)))[::-1]
    known, at = np.unique(ends[index], return_index=True)
    return known, index[at]


def _cut(ids: Sequence[int], ends: Sequence[int] | np.ndarray, keep: bool, size: int, start: int = 0) -> Cut:
    require(len(ids) == len(ends), f"a cut has {len(ids)} tokens but {len(ends)} places")
    return Cut(np.asarray(ids, np.int32), np.asarray(ends, np.int64), np.full(len(ids), keep), size, start)
