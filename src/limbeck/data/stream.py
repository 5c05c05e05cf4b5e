"""Batches out of rows: index-addressed, so a stream's whole state is one number.

Row number ``i`` of an endless pass over the data depends only on ``(seed, i)``: it is row ``i mod n`` of epoch
``i // n``, shuffled by ``(seed, epoch)``. Batch ``k`` holds the rows ``k * batch`` to ``(k + 1) * batch``; batches
cross the border of epochs, so no row is lost or repeated, and resuming needs no replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from limbeck.core.batch import IGNORE, Batch, next_token_batch
from limbeck.core.check import require


class Endless(Protocol):
    """Rows without an end: ``rows[i]`` for any ``i``, such as episodes. They have no length."""

    def __getitem__(self, index: int, /) -> Any: ...


Rows = Sequence[Any] | Endless

# Rows are sorted by size within a window and handed out in chunks, in random order: alike enough, and still shuffled.
# Both are counted in rows, so that the order does not depend on the batch.
WINDOW, CHUNK = 512, 16


class Batches:
    """An endless, resumable stream of batches.

    ``collate`` turns a list of ``batch`` rows into a batch; with ``draws`` it is called with a NumPy generator as
    second argument, which depends only on the seed and the number of the batch (for random masks). ``shuffle`` needs
    rows that have a length. ``size_of`` says how long a row is: rows of like size then share a batch, so that less of
    it is padding. State: ``position``, the number of batches already given.
    """

    def __init__(
        self,
        rows: Rows,
        collate: Callable[..., Batch],
        batch: int,
        seed: int = 0,
        shuffle: bool = True,
        draws: bool = False,
        size_of: Callable[[Any], int] | None = None,
    ) -> None:
        require(batch >= 1, f"a batch must hold at least one row, but batch is {batch}")
        self.size = len(rows) if isinstance(rows, Sized) else None
        require(self.size != 0, "the stream has no rows; check the data it was built from")
        require(self.size or not shuffle, "rows without a length cannot be shuffled; pass shuffle=False")
        self.rows, self.collate, self.batch, self.seed = rows, collate, batch, seed
        self.shuffle, self.draws, self.position = shuffle, draws, 0
        self.size_of = size_of
        self._window: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.position += 1
            yield self.at(self.position - 1)

    def at(self, number: int) -> Batch:
        """Batch ``number``, wherever the stream stands."""
        rows = [self.rows[self._row(i)] for i in range(number * self.batch, (number + 1) * self.batch)]
        return self.collate(rows, np.random.default_rng([self.seed, number])) if self.draws else self.collate(rows)

    def order(self) -> list[int]:
        """The rows of the first epoch, in the order in which they come."""
        return [self._row(i) for i in range(self.size or 0)]

    def take(self, count: int) -> list[Batch]:
        """The next ``count`` batches."""
        return list(islice(self, count))

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"position": self.position, **self._made_of()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position. Raises if the saved stream had other rows, batches or seed."""
        for name, ours in self._made_of().items():
            require(
                state[name] == ours,
                f"the saved stream had {name} {state[name]}, but this one has {ours}; continue with the same data",
            )
        self.position = int(state["position"])

    def __repr__(self) -> str:
        return f"Batches({self.size or 'endless'} rows, batch={self.batch}, seed={self.seed}, position={self.position})"

    def _made_of(self) -> dict[str, int | None]:
        return {"rows": self.size, "batch": self.batch, "seed": self.seed}

    def _row(self, index: int) -> int:
        """Which row stands at place ``index`` of the endless pass."""
        return self._plain(index) if self.size_of is None else self._among_alike(index)

    def _plain(self, index: int) -> int:
        if self.size is None:
            return index
        epoch, place = divmod(index, self.size)
        return int(permutation(self.size, self.seed, epoch)[place]) if self.shuffle else place

    def _among_alike(self, index: int) -> int:
        """The same with the rows of each window ordered by size, in chunks."""
        assert self.size_of is not None
        length = min(WINDOW, self.size or WINDOW)  # never more than an epoch, so that no batch holds a row twice
        number, place = divmod(index, length)
        if self._window[0] != number:
            rows = np.asarray([self._plain(i) for i in range(number * length, (number + 1) * length)])
            rows = rows[np.argsort([self.size_of(self.rows[row]) for row in rows], kind="stable")]
            chunks = [rows[i : i + CHUNK] for i in range(0, length, CHUNK)]
            turns = np.random.default_rng([self.seed, 2, number]).permutation(len(chunks))
            self._window = number, np.concatenate([chunks[turn] for turn in turns])
        return int(self._window[1][place])


@lru_cache(8)
def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of ``size`` rows in an epoch; depends on nothing else."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def pad(rows: Sequence[Sequence[int] | np.ndarray], value: int = 0, length: int | None = None) -> Tensor:
    """Rows of ids, padded on the right: b t int64. ``length`` is the width, by default the longest row's."""
    width = max(map(len, rows)) if length is None else length
    out = torch.full((len(rows), width), value, dtype=torch.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
    return out


def lengths_mask(rows: Sequence[Sized], length: int | None = None) -> Tensor:
    """True where a padded row has a real token: b t bool."""
    sizes = torch.tensor([len(row) for row in rows])
    width = int(sizes.max()) if length is None else length
    return torch.arange(width)[None, :] < sizes[:, None]


def lm_batches(texts: Iterable[str], tokenizer: Any, length: int, batch: int, seed: int = 0) -> Batches:
    """Causal language modelling on packed text: documents joined by the end-of-text token, cut into windows.

    ``ids`` b ``length``; every token but a window's first is a target. The tokens are held in memory (4 bytes each); a
    rest shorter than ``length`` at the very end is dropped.
    """
    require(length >= 2, f"a window needs at least 2 tokens to predict one, but length is {length}")
    ids = packed(texts, tokenizer)
    require(
        len(ids) >= length, f"the corpus has {len(ids)} tokens, fewer than one window of {length}; shorten the window"
    )
    windows = ids[: len(ids) // length * length].reshape(-1, length)

    def collate(rows: list[np.ndarray]) -> Batch:
        ids = torch.from_numpy(np.stack(rows).astype(np.int64))
        return next_token_batch(ids, torch.ones_like(ids, dtype=torch.bool))

    return Batches(list(windows), collate, batch, seed)


def packed(texts: Iterable[str], tokenizer: Any) -> np.ndarray:
    """All documents' ids in one int32 array, each document followed by the end-of-text token where there is one."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts = [np.asarray([*ids, *end], dtype=np.int32) for ids in _encoded(texts, tokenizer, add_special_tokens=False)]
    require(parts, "the corpus holds no text; give at least one document")
    return np.concatenate(parts)


def mlm_batches(
    texts: Iterable[str],
    tokenizer: Any,
    length: int,
    batch: int,
    seed: int = 0,
    probability: float = 0.15,
) -> Batches:
    """Masked language modelling (BERT, Devlin et al. 2019, section 3.1): rows of at most ``length`` tokens.

    Long documents are cut into several rows, special tokens are put around each. A token is chosen with
    ``probability``; of those 80 % become the mask token, 10 % a random token, 10 % stay. Special tokens are never
    chosen. ``answer`` b t marks the chosen positions, ``targets`` b t the original ids there (not shifted).
    """
    require(tokenizer.mask_token_id is not None, "masked language modelling needs a tokenizer with a mask token")
    require(0 < probability < 1, f"the masking probability must lie between 0 and 1, but is {probability}")
    rows = _rows(texts, tokenizer, length)

    def collate(rows: list[np.ndarray], rng: np.random.Generator) -> Batch:
        return masked(pad(rows, tokenizer.pad_token_id or 0), lengths_mask(rows), tokenizer, probability, rng)

    return Batches(rows, collate, batch, seed, draws=True)


def masked(ids: Tensor, mask: Tensor, tokenizer: Any, probability: float, rng: np.random.Generator) -> Batch:
    """The batch of ``mlm_batches`` for padded rows ``ids`` b t and their ``mask`` b t; it masks one token at least."""
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids)) | ~mask
    chance = torch.from_numpy(rng.random(ids.shape)).masked_fill(special, 2.0)
    answer = (chance < probability) | ((chance == chance.min()) & ~special)
    how = torch.from_numpy(rng.random(ids.shape))
    random_ids = torch.from_numpy(rng.integers(len(tokenizer), size=tuple(ids.shape)))
    changed = ids.where(~answer | (how >= 0.8), torch.tensor(tokenizer.mask_token_id))
    changed = changed.where(~answer | (how < 0.8) | (how >= 0.9), random_ids)
    return {"ids": changed, "mask": mask, "targets": ids.where(answer, torch.tensor(IGNORE)), "answer": answer}


def text_batches(texts: Iterable[str], tokenizer: Any, length: int, batch: int, seed: int = 0) -> Batches:
    """Plain text, nothing masked and nothing to predict: ``ids`` and ``mask`` of rows as in ``mlm_batches``."""

    def collate(rows: list[np.ndarray]) -> Batch:
        return {"ids": pad(rows, tokenizer.pad_token_id or 0), "mask": lengths_mask(rows)}

    return Batches(_rows(texts, tokenizer, length), collate, batch, seed)


def _rows(texts: Iterable[str], tokenizer: Any, length: int) -> list[np.ndarray]:
    """Windows of at most ``length`` tokens, special tokens around each; a text without tokens gives none."""
    room = length - tokenizer.num_special_tokens_to_add()
    require(room >= 1, f"rows of {length} tokens leave no room beside the special tokens; make them longer")
    cut = {"truncation": True, "max_length": length, "return_overflowing_tokens": True}
    windows = _encoded(texts, tokenizer, add_special_tokens=True, **cut)
    rows = [
        np.asarray(row, dtype=np.int32) for row in windows if len(row) > length - room
    ]  # an eighth of a list's memory
    require(rows, "the corpus holds no text; give at least one document")
    return rows


def _encoded(texts: Iterable[str], tokenizer: Any, chunk: int = 1000, **settings: Any) -> Iterator[list[int]]:
    """Ids of every text (or of every window of it), a thousand texts per call of the tokenizer."""
    source = iter(texts)
    while part := list(islice(source, chunk)):
        yield from tokenizer(part, verbose=False, **settings)["input_ids"]
