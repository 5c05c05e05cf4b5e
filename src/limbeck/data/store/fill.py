"""A store being written: begun, filled shard by shard by one process or several, gone on with, and finished."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from limbeck.core.check import LimbeckError, require
from limbeck.core.save import make_folder, read_json, replace_dir, write_json
from limbeck.data.store.book import Book
from limbeck.data.store.folder import (
    CARD,
    DONE,
    FORMAT,
    SHARDS,
    TEACHER,
    card_sum,
    load_book,
    save_book,
    shard_path,
)
from limbeck.data.store.shards import Shard, write_shard

QUIET = 30.0
"""Seconds between two lines on how it goes."""

Blocks = Callable[[], tuple[list[tuple[bytes, bytes]], int]]
"""Makes the keys and blocks of a shard, and says of how many tokens they tell."""


class Filling:
    """The store in the folder ``out``, which has to be empty, or hold what the same ``card`` began.

    ``tokenizer`` and ``config`` (a model's, or None) are the teacher's. ``engine``: an Accelerator, where several
    processes write; each then writes shards of its own, and waits for the others where it has to.
    """

    def __init__(self, out: Path, card: Mapping[str, Any], tokenizer: Any, config: Any = None, engine: Any = None):
        self.out, self.engine = Path(out), engine
        self.rank: int = 0 if engine is None else engine.process_index
        self.world: int = 1 if engine is None else engine.num_processes
        self.card = {"format": FORMAT, **card}
        if self.rank == 0:
            self._begin(tokenizer, config)
        self.wait()
        self._compare()
        self.began = self.spoke = time.monotonic()
        self.tokens = 0

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.engine is not None:
            self.engine.wait_for_everyone()

    def _begin(self, tokenizer: Any, config: Any) -> None:
        there = sorted(path.name for path in self.out.iterdir()) if self.out.is_dir() else []
        if CARD in there:
            self._compare()
        else:
            strange = [name for name in there if name != TEACHER and not name.startswith(".")]
            require(not strange, f"--out {self.out}: holds {', '.join(strange[:3])}, not a store; choose another --out")
        make_folder(self.out / SHARDS)
        for left in [*self.out.glob("**/.*.part"), *self.out.glob(".teacher-*")]:  # by a process that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if not (self.out / TEACHER).is_dir():
            with tempfile.TemporaryDirectory(prefix=".teacher-", dir=self.out) as folder:
                parts = Path(folder) / TEACHER
                tokenizer.save_pretrained(parts)
                if config is not None:
                    config.save_pretrained(parts)
                replace_dir(parts, self.out / TEACHER)
        if CARD not in there:
            write_json(self.out / CARD, self.card)

    def _compare(self) -> None:
        """Refuse a store of other things, or in another way, than this one is to be."""
        past = read_json(self.out / CARD)
        names = dict.fromkeys([*past, *self.card])
        changed = [
            f"{n} was {past.get(n)!r} and is now {self.card.get(n)!r}" for n in names if past.get(n) != self.card.get(n)
        ]
        if changed:
            raise LimbeckError(
                f"--out {self.out}: holds a store of something else ({', '.join(changed)}); choose another --out, or "
                "delete the folder"
            )

    def book(self, make: Callable[[], Book]) -> Book:
        """The store's code book; the first process makes it, once."""
        if self.rank == 0 and not self._has_book():
            save_book(self.out, make())
        self.wait()
        return load_book(self.out)

    def _has_book(self) -> bool:
        try:
            load_book(self.out)
        except LimbeckError:
            return False
        return True

    def mine(self, shards: int) -> range:
        """The shards, of so many, that this process writes."""
        return range(self.rank, shards, self.world)

    def shard(self, number: int, keys: Iterable[bytes], make: Blocks) -> None:
        """Write a shard, unless it is there, whole, and under ``keys``; one that is damaged is written anew."""
        path = shard_path(self.out, number)
        if (there := _whole(path)) is not None:
            if {key.tobytes() for key in there.keys} != set(keys):
                raise LimbeckError(
                    f"{path}: was written about other rows than the data hold now; choose another --out, or delete "
                    f"{self.out}"
                )
            return
        blocks, tokens = make()
        write_shard(path, blocks, tokens)
        self.tokens += tokens

    def tell(self, done: int, shards: int) -> None:
        """Say now and then how it goes: ``done`` of ``shards`` are there, counting this process's alone."""
        now = time.monotonic()
        if self.rank == 0 and now - self.spoke > QUIET:
            self.spoke = now
            left = (now - self.began) / max(done, 1) * (shards - done)
            speed = self.tokens / (now - self.began)
            said = f"teach: {done}/{shards} shards, {speed:.4g} tokens/s, {left / 60:.1f} minutes left"
            print(said, file=sys.stderr, flush=True)

    def finish(self, shards: int) -> dict[str, int]:
        """Write what a reader looks for, and return the store's sizes: rows, tokens and bytes."""
        self.wait()
        if self.rank == 0:
            found = [Shard(shard_path(self.out, number)) for number in range(shards)]
            sizes = [shard.path.stat().st_size for shard in found]
            sums = {"rows": sum(map(len, found)), "tokens": sum(shard.tokens for shard in found)}
            require(sums["tokens"], f"{self.out}: the data supervise no token, so there is nothing to be taught")
            heads = [shard.head for shard in found]
            write_json(self.out / DONE, {**sums, "bytes": sizes, "heads": heads, "card": card_sum(self.card)})
        self.wait()
        done = read_json(self.out / DONE)
        return {"rows": done["rows"], "tokens": done["tokens"], "bytes": sum(done["bytes"])}


def _whole(path: Path) -> Shard | None:
    """The shard in ``path`` if it is there and undamaged."""
    try:
        shard = Shard(path)
        shard.check()
    except LimbeckError:
        return None
    return shard
