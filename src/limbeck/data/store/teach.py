"""A teacher is asked once, and what it says is written into a store (``folder``).

Rows are taken in the order of the data and cut into shards of equally many rows, so a shard's content depends on the
data alone: a run that was killed writes what is missing, on as many processes as there are then, and the store ends up
the same to the last bit as long as batches are of the same size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.core.batch import Batch, to_device
from limbeck.core.check import LimbeckError, require
from limbeck.core.signals import Signals, Source
from limbeck.data.store.book import Book
from limbeck.data.store.fill import Filling
from limbeck.data.store.keys import Text, fingerprint, texts
from limbeck.data.store.records import MOST, Kept, check_vocabulary, encode
from limbeck.data.store.rest import tilted
from limbeck.data.store.sounding import make_book
from limbeck.data.store.states import encode_states
from limbeck.data.stream import Batches

SAMPLE, SAMPLE_LOGITS, SAMPLE_BATCHES = 2048, 2**26, 32
"""The code book is made from so many positions at most, of so many logits, in so many batches."""
SHARD_TOKENS = 2**17
"""Supervised tokens that a shard holds, about."""
AT_ONCE = 2**23
"""Logits that are looked at together."""


@dataclass(frozen=True)
class Keep:
    """What a store keeps of each position in ``batch[on]``.

    The log-probabilities of the ``top`` best tokens and how the others share the rest, told within ``within`` nats if
    directions can do that (``tilts``: exactly so many of them; see ``book``). Or, where ``hidden`` names layers,
    their states.
    """

    top: int = 64
    tilts: int | None = None
    within: float = 0.04
    hidden: tuple[int, ...] = ()
    on: str = "answer"

    def __post_init__(self) -> None:
        require(1 <= self.top <= MOST, f"--top {self.top}: a store keeps 1 to {MOST} tokens per position")
        require(self.within > 0, f"--within {self.within}: expected a divergence above 0, in nats")


def teach(
    source: Source,
    stream: Batches,
    tokenizer: Any,
    out: Path,
    keep: Keep | None = None,
    about: Mapping[str, Any] | None = None,
    config: Any = None,
    engine: Any = None,
    device: torch.device | None = None,
) -> dict[str, int]:
    """Ask ``source`` about every row of ``stream`` and write the store ``out``; returns its rows, tokens and bytes.

    ``about`` says in JSON who is asked about what (teacher, data, length); a store that was begun about something else
    is refused. ``tokenizer`` and the model's ``config`` are kept beside the answers. ``engine``: see ``Filling``.
    """
    keep = keep or Keep()
    require(stream.size, "an endless stream cannot be taught: a store needs rows that can be counted")
    require(not stream.draws, "rows that are masked anew each time cannot be taught: a student would never meet them")
    mark, per_shard = fingerprint(tokenizer), _per_shard(stream, keep.on)
    kept = {"top": keep.top, "within": keep.within, "tilts": keep.tilts} if not keep.hidden else {}
    card = {"about": dict(about or {}), "tokenizer": mark, "on": keep.on, "hidden": list(keep.hidden), **kept}
    filling = Filling(out, card | {"rows": stream.size, "per_shard": per_shard}, tokenizer, config, engine)
    asking = Asking(source, keep, mark, device)
    if not keep.hidden:
        asking.book = filling.book(lambda: asking.sounded(stream))
    shards = -(-(stream.size or 0) // per_shard)
    for done, number in enumerate(filling.mine(shards)):
        batches = list(_batches(stream, number * per_shard, per_shard))
        keys = (text.key for batch in batches for text in texts(batch, mark, keep.on))
        filling.shard(number, keys, partial(asking.blocks, batches))
        filling.tell(done + 1, len(filling.mine(shards)))
    return filling.finish(shards)


class Asking:
    """A teacher that is asked about batches, and what is kept of its words."""

    def __init__(self, source: Source, keep: Keep, mark: str, device: torch.device | None) -> None:
        self.source, self.keep, self.mark, self.device = source, keep, mark, device or torch.device("cpu")
        self.book: Book | None = None

    @torch.no_grad()
    def _hear(self, batch: Batch) -> tuple[Signals, Batch]:
        batch = to_device(batch, self.device)
        return self.source(batch), batch

    @torch.no_grad()
    def sounded(self, stream: Batches) -> Book:
        """The code book, from a sample of positions all over the data."""
        count = -(-(stream.size or 0) // stream.batch)
        chosen = sorted({int(place) for place in np.linspace(0, count - 1, min(count, SAMPLE_BATCHES))})
        found: list[Tensor] = []
        room = SAMPLE // len(chosen)
        for number in chosen:
            for batch in _batches(stream, number * stream.batch, stream.batch):
                said, batch = self._hear(batch)
                logits = _checked(said.logits_at(_some(batch[self.keep.on], room)), self.keep.on)
                room = max(1, min(room, SAMPLE_LOGITS // (logits.shape[-1] * len(chosen))))
                found.append(logits.float().log_softmax(-1)[:room].cpu())
        log_probs = torch.cat(found)
        require(len(log_probs), f"the data supervise no token at {self.keep.on!r}, so there is nothing to be taught")
        check_vocabulary(log_probs.shape[1])
        return make_book(log_probs, self.keep.top, self.keep.tilts, self.keep.within)

    def blocks(self, batches: list[Batch]) -> tuple[list[tuple[bytes, bytes]], int]:
        """Keys and blocks of all texts in ``batches``, and the number of positions they tell of."""
        found, tokens = [], 0
        for batch in batches:
            said, here = self._hear(batch)
            tell = self._states(said, here) if self.keep.hidden else self._predictions(said, here)
            for text in texts(batch, self.mark, self.keep.on):
                found.append((text.key, tell(text)))
                tokens += int(text.asked.sum())
        return found, tokens

    @torch.no_grad()
    def _predictions(self, said: Signals, batch: Batch) -> Any:
        """How to tell a text's predictions: a function of the text, the best tokens of the whole batch being known."""
        assert self.book is not None
        asked = batch[self.keep.on].bool() & batch.get("mask", batch[self.keep.on]).bool()
        parts = [_best(said, some, self.keep, self.book) for some in _few(asked, AT_ONCE // self.book.size)]
        kept = Kept(*(np.concatenate(part) for part in zip(*parts, strict=True))) if parts else None
        number = torch.cumsum(asked.flatten(), 0).reshape(asked.shape).cpu().numpy() - 1

        def tell(text: Text) -> bytes:
            assert kept is not None
            assert self.book is not None
            chosen = number[text.row, text.at[text.asked]]
            return encode(np.flatnonzero(text.asked), Kept(*(part[chosen] for part in kept)), self.book)

        return tell

    def _states(self, said: Signals, batch: Batch) -> Any:
        """How to tell a text's hidden states."""
        layers = said.need("hidden")
        states = torch.stack([layers[layer] for layer in layers], 2).float().cpu().numpy()  # b t layers d
        require(np.isfinite(states).all(), "the teacher's hidden states hold NaN or infinity; check its weights")
        return lambda text: encode_states(np.flatnonzero(text.asked), states[text.row, text.at[text.asked]])


def _best(said: Signals, asked: Tensor, keep: Keep, book: Book) -> Kept:
    """What is kept at the true entries of ``asked``."""
    logits = _checked(said.logits_at(asked), keep.on)
    require(
        logits.shape[1] == book.size,
        f"the teacher gives {logits.shape[1]} logits, but the store was begun with {book.size}; choose another --out",
    )
    log_probs = logits.float().log_softmax(-1)
    best = log_probs.topk(min(keep.top, book.size), -1)
    rest = log_probs.exp().scatter_(1, best.indices, 0.0).sum(1).log()
    tilt, reach = tilted(book, log_probs, best.indices)
    return Kept(*(part.cpu().numpy() for part in (best.indices, best.values, rest, tilt, reach)))


def _checked(logits: Tensor, on: str) -> Tensor:
    if not torch.isfinite(logits.amax(-1)).all():
        raise LimbeckError(
            f"the teacher's logits hold NaN or infinity at positions of {on!r}; check its weights and its precision "
            "(float16 overflows where bfloat16 does not)"
        )
    return logits


def _few(asked: Tensor, count: int) -> Iterator[Tensor]:
    """Masks with ``count`` true entries of ``asked`` each, in order."""
    number = torch.cumsum(asked.flatten(), 0).reshape(asked.shape) - 1
    for begin in range(0, int(asked.sum()), max(count, 1)):
        yield asked & (number >= begin) & (number < begin + max(count, 1))


def _some(asked: Tensor, count: int) -> Tensor:
    """``count`` true entries of ``asked``, evenly spread, or all if there are fewer."""
    number, total = torch.cumsum(asked.flatten(), 0).reshape(asked.shape) - 1, int(asked.sum())
    return asked.bool() & (number % max(1, -(-total // max(count, 1))) == 0)


def _batches(stream: Batches, begin: int, count: int) -> Iterator[Batch]:
    """The rows from ``begin`` on, ``count`` of them or as many as there are, in the order of the data."""
    end = min(begin + count, stream.size or 0)
    for start in range(begin, end, stream.batch):
        yield stream.collate([stream.rows[row] for row in range(start, min(start + stream.batch, end))])


def _per_shard(stream: Batches, on: str) -> int:
    """Rows of a shard, from the supervised tokens of some rows all over the data."""
    size = stream.size or 0
    chosen = sorted({int(place) for place in np.linspace(0, size - 1, 64)})
    tokens = sum(int(batch[on].sum()) for row in chosen for batch in _batches(stream, row, 1) if on in batch)
    return max(1, int(SHARD_TOKENS * len(chosen) / max(tokens, 1)))
