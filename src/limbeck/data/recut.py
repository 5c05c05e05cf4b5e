"""One text cut by two tokenizers: where the cuts agree, two models can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.data.align import UNKNOWN, Cut, agree, byte_ends
from limbeck.data.stream import Batches, lengths_mask, pad

Span = tuple[int, int]


class Recut(NamedTuple):
    """A text's ids under our tokenizer and under another, and the pairs of places (ours, theirs) that agree."""

    ids: list[int]
    their_ids: list[int]
    places: list[tuple[int, int]]


def recut_batches(
    texts: Iterable[str],
    ours: Any,
    theirs: Any,
    length: int,
    batch: int,
    seed: int = 0,
    masked: bool = False,
    probability: float = 0.15,
    most: int | None = None,
) -> Batches:
    """Texts that the tokenizers ``ours`` and ``theirs`` cut differently, for ``sources.vocabulary.elsewhere``.

    ``ids``, ``mask`` and ``aligned`` b t are ours; ``teacher_ids``, ``teacher_mask`` and ``teacher_aligned`` b s
    theirs. Aligned are, for causal models, tokens that end at the same byte: both models predict what follows.
    ``masked``: tokens that are the same on both sides; a share ``probability`` of them (one at least) is masked on both
    sides and aligned. At most ``most`` texts are kept. Raises ``LimbeckError`` if all texts are cut alike.
    """
    require(not masked or ours.mask_token_id is not None, "recut_batches: masked needs a tokenizer with a mask token")
    rows = list(islice(recuts(texts, ours, theirs, length, masked), most))
    require(
        rows, "every text is cut as before, so both models already say the same and there is nothing to learn from it"
    )
    marks = (ours.mask_token_id, theirs.mask_token_id) if masked else None

    def collate(rows: list[Recut], rng: np.random.Generator) -> Batch:
        chosen = [_some(row.places, probability, rng) if masked else row.places for row in rows]
        mine = _side([row.ids for row in rows], [[i for i, _ in places] for places in chosen], marks and marks[0])
        other = _side(
            [row.their_ids for row in rows], [[j for _, j in places] for places in chosen], marks and marks[1]
        )
        return mine | {f"teacher_{name}": value for name, value in other.items()}

    return Batches(rows, collate, batch, seed, draws=True)


def recuts(texts: Iterable[str], ours: Any, theirs: Any, length: int, masked: bool) -> Iterator[Recut]:
    """Texts that are cut differently and agree somewhere, cut to ``length`` tokens."""
    settings = {"truncation": True, "max_length": length, "return_offsets_mapping": True, "verbose": False}
    for text in texts:
        mine, other = (tokenizer(text, return_special_tokens_mask=True, **settings) for tokenizer in (ours, theirs))
        if ours.convert_ids_to_tokens(mine["input_ids"]) == theirs.convert_ids_to_tokens(other["input_ids"]):
            continue
        if masked:
            names = ours.convert_ids_to_tokens(mine["input_ids"]), theirs.convert_ids_to_tokens(other["input_ids"])
            places = [(i, j) for i, j in _same_tokens(mine, other) if names[0][i] == names[1][j]]
        else:
            places = _same_ends(_cut(ours, text, mine), _cut(theirs, text, other))
        if places:
            yield Recut(mine["input_ids"], other["input_ids"], places)


def _spans(cut: Any) -> list[Span | None]:
    """Characters of every token; None for special ones."""
    pairs = zip(cut["offset_mapping"], cut["special_tokens_mask"], strict=True)
    return [None if special else tuple(span) for span, special in pairs]


def _same_tokens(ours: Any, theirs: Any) -> list[tuple[int, int]]:
    """Places with the same characters on both sides; characters that several tokens share do not count."""
    mine, other = _once(_spans(ours)), _once(_spans(theirs))
    return [(mine[span], other[span]) for span in mine if span in other]


def _once(spans: Sequence[Span | None]) -> dict[Span, int]:
    return {span: i for i, span in enumerate(spans) if span is not None and spans.count(span) == 1}


def _same_ends(ours: Cut, theirs: Cut) -> list[tuple[int, int]]:
    """Places after which the same text follows, but for the last token of either side, which predicts nothing."""
    return [(i, j) for i, j in agree(ours, theirs).tolist() if i < len(ours.ids) - 1 and j < len(theirs.ids) - 1]


def _cut(tokenizer: Any, text: str, cut: Any) -> Cut:
    """How far each token has read; special tokens in front of the text stand at its beginning."""
    special = np.asarray(cut["special_tokens_mask"], bool)
    ids, spans = (np.asarray(cut[name])[~special] for name in ("input_ids", "offset_mapping"))
    ends = np.full(len(special), UNKNOWN)
    ends[: int(np.argmin([*special, False]))] = 0
    ends[~special] = byte_ends(tokenizer, text, ids.tolist(), spans.tolist())
    return Cut(np.asarray(cut["input_ids"]), ends, ~special, len(text.encode()))


def _some(places: list[tuple[int, int]], probability: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    draws = rng.random(len(places))
    return [place for place, draw in zip(places, draws, strict=True) if draw < probability or draw == draws.min()]


def _side(rows: list[list[int]], places: list[list[int]], mark: int | None) -> dict[str, Tensor]:
    """One side of the batch: ``ids`` with ``mark`` at the chosen places, ``mask``, and ``aligned``, true there."""
    ids, aligned = pad(rows), pad([[0] * len(row) for row in rows]).bool()
    for i, chosen in enumerate(places):
        aligned[i, torch.tensor(chosen)] = True
    return {
        "ids": ids if mark is None else ids.masked_fill(aligned, mark),
        "mask": lengths_mask(rows),
        "aligned": aligned,
    }
