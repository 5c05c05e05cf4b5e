"""A store from log-probabilities that another program wrote down (``foreign``).

The store knows its texts by their token ids, so these are kept beside it, in ``rows.jsonl``: data to train on that the
store can answer for (``--data store/rows.jsonl``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.core.check import one_of, require
from limbeck.core.save import write_atomic
from limbeck.data.store.book import Book, ordered, plain_book
from limbeck.data.store.fill import Filling
from limbeck.data.store.foreign import FORMATS, Spoken, aligned
from limbeck.data.store.keys import fingerprint, texts
from limbeck.data.store.records import Kept, check_vocabulary, encode
from limbeck.data.store.teach import SAMPLE, SHARD_TOKENS

ROWS = "rows.jsonl"
NOTHING = 1e-6
"""A rest below this is what rounding left."""


def import_store(
    format: str, path: Path, tokenizer: Any, size: int, out: Path, top: int = 64, config: Any = None, engine: Any = None
) -> dict[str, int]:
    """Write the store ``out`` from the file or folder ``path`` of a ``format``; returns its rows, tokens and bytes.

    ``size``: tokens in the teacher's vocabulary, as its logits have them. What stands beyond the listed tokens is
    spread evenly over the others. Rows without log-probabilities are left out.
    """
    one_of(format, FORMATS, "--import")
    read = aligned(partial(FORMATS[format], Path(path), top), str(path))
    return spoken_store(read, {"imported": format, "data": str(path)}, tokenizer, size, out, top, config, engine)


def spoken_store(
    read: Callable[[], Iterator[Spoken]],
    about: Mapping[str, Any],
    tokenizer: Any,
    size: int,
    out: Path,
    top: int = 64,
    config: Any = None,
    engine: Any = None,
) -> dict[str, int]:
    """The same from texts whose candidates stand where they belong; ``read`` gives them anew at each call.

    ``about`` says in JSON where they are from.
    """
    check_vocabulary(size)
    mark = fingerprint(tokenizer)
    card = {"about": dict(about), "tokenizer": mark, "on": "answer", "hidden": [], "top": top}
    filling = Filling(out, card, tokenizer, config, engine)
    book = filling.book(lambda: _book(read(), size, top))
    count, lines = 0, list[str]()
    for number, group in enumerate(_groups(read())):
        count = number + 1
        lines += [_line(one) for one in group]
        if number in range(filling.rank, count, filling.world):
            blocks = [(_key(one, mark), _block(one, book)) for one in group]
            tokens = sum(len(one.after) for one in group)
            filling.shard(number, [key for key, _ in blocks], partial(lambda *made: made, blocks, tokens))
    require(count, f"{out}: there are no log-probabilities to be kept")
    if filling.rank == 0:
        write_atomic(filling.out / ROWS, "".join(lines))
    return filling.finish(count)


def _groups(rows: Iterator[Spoken]) -> Iterator[list[Spoken]]:
    """Texts for one shard each."""
    group, tokens = list[Spoken](), 0
    for one in rows:
        if one.after:
            group.append(one)
            tokens += len(one.after)
        if tokens >= SHARD_TOKENS:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _book(rows: Iterator[Spoken], size: int, top: int) -> Book:
    """The order of tokens from the first texts; the rest is spread evenly."""
    hits, seen = np.full(size, 0.1), 0
    for one in rows:
        for ids, _ in one.after.values():
            _check_ids(ids, size, one.where)
            hits[ids] += 1
            seen += 1
        if seen >= 4 * SAMPLE:
            break
    return ordered(plain_book(size), hits, top)


def _check_ids(ids: np.ndarray, size: int, where: str) -> None:
    require(
        len(ids) == 0 or (ids.min() >= 0 and ids.max() < size),
        f"{where}: names the token {ids.max(initial=0)}, but the teacher's vocabulary has {size}; name "
        "the teacher that was asked",
    )


def _key(one: Spoken, mark: str) -> bytes:
    ids = torch.from_numpy(one.ids)[None]
    return next(texts({"ids": ids, "all": torch.ones_like(ids, dtype=torch.bool)}, mark, "all")).key


def _block(one: Spoken, book: Book) -> bytes:
    """What is kept of a text."""
    positions = np.asarray(sorted(one.after))
    top = max(len(ids) for ids, _ in one.after.values())
    ids, log_p = np.zeros((len(positions), top), np.int64), np.full((len(positions), top), -np.inf)
    for row, at in enumerate(positions):
        names, values = one.after[at]
        _check_ids(names, book.size, one.where)
        ids[row, : len(names)], log_p[row, : len(names)] = names, values
    total = np.exp(log_p).sum(1)
    with np.errstate(divide="ignore"):
        rest = np.where(1 - total > NOTHING, np.log((1 - total).clip(0)), -np.inf)
    none = np.zeros((len(positions), 0), np.int8)
    return encode(positions, Kept(ids, log_p - np.log(total.clip(1))[:, None], rest, none, np.zeros(len(rest))), book)


def _line(one: Spoken) -> str:
    """A text as a row of data: ids, and the runs of tokens that are to be predicted."""
    learned = np.asarray(sorted(one.after)) + 1
    learned = learned[learned < len(one.ids)]
    breaks = np.flatnonzero(np.diff(learned) > 1) + 1
    runs = [[int(run[0]), int(run[-1]) + 1] for run in np.split(learned, breaks) if len(run)]
    return json.dumps({"ids": one.ids.tolist(), "keep": runs}) + "\n"
