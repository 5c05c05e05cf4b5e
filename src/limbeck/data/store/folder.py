"""A store: what a teacher said, on disk, addressed by the content it was said about.

A folder::

    store.json                   who was asked about what, and how it is kept
    book.safetensors             the code book (``book``); not beside hidden states
    teacher/                     the teacher's tokenizer and configuration
    shards/00000.safetensors     blocks (``shards``), one for each text
    done.json                    the sizes of all shards; written last

The key of a block is the hash of a text's token ids under the fingerprint of the tokenizer that cut them. Whoever asks
must show the same ids from the same tokenizer, so that no order of rows, no shuffling, padding or packing can pair a
text with what was said about another.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.core.check import LimbeckError, require
from limbeck.core.save import STORE, load_tensors, read_json, save_tensors
from limbeck.data.store.book import Book
from limbeck.data.store.shards import AGAIN, Shard

FORMAT = 1
CARD, BOOK, DONE, SHARDS, TEACHER = STORE, "book.safetensors", "done.json", "shards", "teacher"
TABLES = ("rarity", "widths", "shares", "directions", "scales")


def is_store(path: str | Path) -> bool:
    """Whether ``path`` is the folder of a store."""
    return (Path(path) / CARD).is_file()


def told_by(path: str | Path) -> str | None:
    """The name of the teacher whose words the store ``path`` holds, where it is known."""
    return read_json(Path(path) / CARD).get("about", {}).get("teacher")


def save_book(path: Path, book: Book) -> None:
    """Write ``book`` into the store ``path``."""
    tables = {name: np.ascontiguousarray(getattr(book, name)) for name in TABLES}
    save_tensors(path / BOOK, {n: torch.from_numpy(t.copy()) for n, t in tables.items()}, {"sum": _sum(tables)})


def load_book(path: Path) -> Book:
    """The book of the store ``path``."""
    found, said = load_tensors(path / BOOK)
    tables = {name: found[name].numpy() for name in TABLES if name in found}
    if len(tables) < len(TABLES) or _sum(tables) != said.get("sum"):
        raise LimbeckError(f"{path / BOOK}: is not what was written (its checksum differs); {AGAIN}")
    return Book(**tables)


def _sum(tables: Mapping[str, np.ndarray]) -> str:
    return str(zlib.crc32(b"".join(tables[name].tobytes() for name in TABLES)))


def shard_path(path: Path, number: int) -> Path:
    """The file of shard ``number``."""
    return path / SHARDS / f"{number:05d}.safetensors"


@dataclass(frozen=True)
class Store:
    """A finished store, open for reading: its folder, its card (``store.json``) and its shards."""

    path: Path
    card: Mapping[str, Any]
    shards: tuple[Shard, ...]

    @cached_property
    def book(self) -> Book:
        """The code book."""
        return load_book(self.path)

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """All keys in order, as two halves (n 2), and for each its shard and block (n 2)."""
        halves = np.concatenate([shard.keys for shard in self.shards]).view(">u8").astype(np.uint64)
        places = [np.stack([np.full(len(s), i), np.arange(len(s))], 1) for i, s in enumerate(self.shards)]
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        return halves[order], np.concatenate(places).astype(np.int32)[order]

    @cached_property
    def _high(self) -> np.ndarray:
        return np.ascontiguousarray(self._index[0][:, 0])

    def blocks(self, key: bytes) -> Iterator[np.ndarray]:
        """Every block under ``key``: none, one, or several if the text was asked about in several ways."""
        halves, places = self._index
        high, low = np.frombuffer(key, ">u8").astype(np.uint64)
        begin, end = (int(np.searchsorted(self._high, high, side)) for side in ("left", "right"))
        for shard, number in places[begin:end][halves[begin:end, 1] == low]:
            yield self.shards[shard].block(int(number))

    @property
    def about(self) -> str:
        """Who was asked about what, in a few words."""
        return ", ".join(f"{name} {value}" for name, value in self.card.get("about", {}).items()) or "something unnamed"

    def check(self) -> None:
        """Read everything; raises ``LimbeckError`` that names the first shard with a fault."""
        for shard in self.shards:
            shard.check()


def open_store(path: str | Path) -> Store:
    """The store in the folder ``path``. Raises ``LimbeckError`` if it is none, unfinished, cut or of another format."""
    path = Path(path)
    require(is_store(path), f"{path}: is no store, for it holds no {CARD}; limbeck teach writes one")
    card = read_json(path / CARD)
    if card.get("format") != FORMAT:
        raise LimbeckError(f"{path}: is a store of format {card.get('format')}, but this limbeck reads {FORMAT}")
    require((path / DONE).is_file(), f"{path}: the store is not finished; run the same limbeck teach again, it goes on")
    done = read_json(path / DONE)
    whole = isinstance(done, dict) and done.get("card") == card_sum(card) and {"bytes", "heads"} <= done.keys()
    require(whole, f"{path / CARD}: is not what {DONE} was written for (its checksum differs); {AGAIN}")
    return Store(path, card, _shards(path, done))


def _shards(path: Path, done: Mapping[str, Any]) -> tuple[Shard, ...]:
    known = zip(done["bytes"], done["heads"], strict=True)
    return tuple(Shard(shard_path(path, number), size, head) for number, (size, head) in enumerate(known))


def card_sum(card: Mapping[str, Any]) -> int:
    """A checksum of a card."""
    return zlib.crc32(json.dumps(card, sort_keys=True).encode())
