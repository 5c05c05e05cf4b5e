"""What servers have answered, in one SQLite file: nothing is paid for twice, by however many threads or processes.

A reply is filed under the content of its request. Whoever is about to ask first *claims* the request; the others wait
for the reply. A claim ends with the reply, with its process, or when its time is over, so a killed run blocks nobody.
Every reply is in the file, with the tokens that it cost, before anybody sees it: a kill loses none, a power cut perhaps
the last few.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple
from uuid import uuid4

from limbeck.core.check import LimbeckError, require

VERSION = 1
TABLES = (
    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, model TEXT, request TEXT, reply BLOB,"
    " tokens_in INTEGER, tokens_out INTEGER, reported INTEGER, time REAL)",
    "CREATE TABLE IF NOT EXISTS refused (model TEXT, reason TEXT, tokens_in INTEGER, tokens_out INTEGER, time REAL)",
    "CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT, host TEXT, pid INTEGER, until REAL)",
)
BUSY = 60.0  # seconds that one process waits for another's write


class Usage(NamedTuple):
    """Tokens that a server says it read and wrote; ``reported`` is false where it said nothing."""

    tokens_in: int = 0
    tokens_out: int = 0
    reported: bool = False


class Spent(NamedTuple):
    """What one model has cost: ``replies`` with their tokens (``unreported`` of them without), and refused replies."""

    replies: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unreported: int = 0
    refused: int = 0
    refused_in: int = 0
    refused_out: int = 0

    def cost(self, price: tuple[float, float]) -> float:
        """Money, from the price of a million tokens in and a million tokens out; refused replies are billed too."""
        tokens = (self.tokens_in + self.refused_in, self.tokens_out + self.refused_out)
        return sum(many * each for many, each in zip(tokens, price, strict=True)) / 1e6


class Responses:
    """The file at ``path``, made when it is first needed. Safe for threads and for several processes of one machine."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock, self._pid = RLock(), -1

    def find(self, key: str) -> dict[str, Any] | None:
        """The reply filed under ``key``, or None."""
        with self._database() as db:
            row = db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else self._unpacked(row[0], key)

    def claim(self, key: str, seconds: float, owner: str | None = None) -> str | None:
        """Claim ``key`` for ``seconds``: the claim's owner (a new name unless given), or None where it is taken.

        It is taken while another's claim stands, and for good once there is a reply. ``owner`` prolongs its own claim.
        """
        mine, now, here = owner or uuid4().hex, time.time(), socket.gethostname()
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM replies WHERE key = ?", (key,)).fetchone():
                return None
            held = db.execute("SELECT owner, host, pid, until FROM claims WHERE key = ?", (key,)).fetchone()
            if held is not None and held[0] != mine and held[3] > now and _alive(held[1], held[2]):
                return None
            row = (key, mine, here, os.getpid(), now + seconds)
            db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?)", row)
        return mine

    def release(self, key: str, owner: str) -> None:
        """Give a claim back; nothing happens if it has passed to somebody else."""
        with self._transaction() as db:
            db.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, owner))

    def keep(self, key: str, model: str, request: str, reply: Mapping[str, Any], usage: Usage) -> dict[str, Any]:
        """File a reply and end the claim on it, at once; the first reply wins, and is returned."""
        packed = zlib.compress(json.dumps(reply).encode())
        with self._transaction() as db:
            row = (key, model, request, packed, usage.tokens_in, usage.tokens_out, usage.reported, time.time())
            new = db.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row).rowcount
            db.execute("DELETE FROM claims WHERE key = ?", (key,))
        if not new:  # somebody took over a claim that had run out, and both were answered
            self.refuse(model, "answered twice", usage)
        return self.find(key) or {}

    def refuse(self, model: str, reason: str, usage: Usage) -> None:
        """Note what a reply cost that could not be used."""
        with self._transaction() as db:
            row = (model, reason, usage.tokens_in, usage.tokens_out, time.time())
            db.execute("INSERT INTO refused VALUES (?, ?, ?, ?, ?)", row)

    def spent(self) -> dict[str, Spent]:
        """What each model has cost, over everything in the file."""
        sums = "SELECT model, COUNT(*), SUM(tokens_in), SUM(tokens_out)"
        with self._database() as db:
            kept = db.execute(f"{sums}, SUM(reported = 0) FROM replies GROUP BY model").fetchall()
            lost = {row[0]: row[1:] for row in db.execute(f"{sums} FROM refused GROUP BY model")}
        found = {model: Spent(*row, *lost.pop(model, (0, 0, 0))) for model, *row in kept}
        return found | {model: Spent(0, 0, 0, 0, *row) for model, row in lost.items()}

    def close(self) -> None:
        """Close the file; it opens again when it is needed."""
        with self._lock:
            if self._pid == os.getpid():
                self._db.close()
            self._pid = -1

    def _open(self) -> sqlite3.Connection:
        """This process's connection: a forked one must not use its parent's."""
        if self._pid != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            require(
                version in (0, VERSION),
                f"{self.path}: expected replies in format {VERSION}, but the file has {version}; name another file",
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # safe from kills; FULL waits 20 ms for the disk per reply
            for table in (*TABLES, f"PRAGMA user_version = {VERSION}"):
                self._db.execute(table)
            self._pid = os.getpid()
        return self._db

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                yield self._open()
        except (sqlite3.Error, OSError) as error:
            raise LimbeckError(
                f"{self.path}: the file of replies cannot be used ({error}); name another file, on a local disk"
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._database() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def _unpacked(self, packed: bytes, key: str) -> dict[str, Any]:
        try:
            return json.loads(zlib.decompress(packed))
        except (zlib.error, ValueError) as error:
            raise LimbeckError(
                f"{self.path}: the reply {key[:12]} is damaged ({error}); restore the file, or delete it to ask again"
            ) from None


def _alive(host: str, pid: int) -> bool:
    """Whether a claim's process may still run; one on another machine, or where nobody can say, may."""
    if host != socket.gethostname() or os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs and is somebody else's
        return True
    return True
