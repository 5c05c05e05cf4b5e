"""What a store of log-probabilities knows about the vocabulary as a whole: its code book, made from a sample.

Two things that the single positions need not repeat:

- **which tokens are often among the best.** Tokens are put in that order and cut into buckets of 1, 2, 4 ... tokens
  that are equally often hit. Elias-Fano codes over buckets then name a set of tokens in little more than the
  entropy, where plain ids cost log2(v) bits each;
- **how the others share the rest.** The share of a token that is not among the best is w_v exp(c . u_v) / Z: a
  distribution w common to all, tilted along a few directions u by coefficients c that each position stores, a byte
  each. The directions are the principal ones of what w leaves unexplained; their number is chosen on a part of the
  sample, as small as the wanted divergence allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

GRAIN = 8
"""Steps per nat in which the common share of a token is kept."""
FORBIDDEN = 255
"""The mark of a token that is practically impossible everywhere: exp(-32) of the commonest share, or less."""


class Tables(NamedTuple):
    """The common shares as tensors: ``log_share`` v, ``directions`` v r, and ``unit`` r, the step of a coefficient."""

    log_share: Tensor
    directions: Tensor
    unit: Tensor


@dataclass(frozen=True, eq=False)
class Book:
    """``rarity`` v bytes (the order), ``widths`` of the buckets in bits, ``shares`` v bytes, ``directions`` v r bytes
    and their ``scales`` 2 r: of the directions and of the coefficients."""

    rarity: np.ndarray
    widths: np.ndarray
    shares: np.ndarray
    directions: np.ndarray
    scales: np.ndarray

    @property
    def size(self) -> int:
        """Tokens in the vocabulary."""
        return len(self.rarity)

    @property
    def tilts(self) -> int:
        """Coefficients that a position stores."""
        return self.directions.shape[1]

    @cached_property
    def order(self) -> np.ndarray:
        """Token ids, commonest first."""
        return np.argsort(self.rarity, kind="stable").astype(np.int32)

    @cached_property
    def place(self) -> np.ndarray:
        """Where each token stands in ``order``."""
        place = np.empty(self.size, np.int64)
        place[self.order] = np.arange(self.size)
        return place

    @cached_property
    def starts(self) -> np.ndarray:
        """The place at which each bucket begins."""
        sizes = np.left_shift(1, self.widths.astype(np.int64))
        return np.cumsum(sizes) - sizes

    @cached_property
    def tables(self) -> Tables:
        """The shares, ready to be computed with."""
        shares = torch.from_numpy(self.shares.astype(np.float32))
        log_share = torch.log_softmax(torch.where(shares == FORBIDDEN, -math.inf, -shares / GRAIN), 0)
        scales = torch.from_numpy(self.scales)
        return Tables(log_share, torch.from_numpy(self.directions).float() * scales[0], scales[1])

    def on(self, device: torch.device) -> Tables:
        """``tables`` on ``device``."""
        return _on(self, device)

    def first(self, number: int) -> Book:
        """The same with the first ``number`` directions only."""
        return replace(self, directions=self.directions[:, :number].copy(), scales=self.scales[:, :number].copy())


@lru_cache(4)
def _on(book: Book, device: torch.device) -> Tables:
    return Tables(*(table.to(device) for table in book.tables))


def plain_book(size: int) -> Book:
    """The book of a vocabulary of which nothing is known: ids in order, equal buckets, the rest spread evenly."""
    return Book(
        rarity=np.zeros(size, np.uint8),
        widths=np.zeros(0, np.uint8),
        shares=np.zeros(size, np.uint8),
        directions=np.zeros((size, 0), np.int8),
        scales=np.zeros((2, 0), np.float32),
    )


def ordered(book: Book, hits: np.ndarray, top: int) -> Book:
    """``book`` with the order and buckets that suit tokens hit ``hits`` v times (not all 0) in sets of ``top``."""
    chance = np.maximum(hits / hits.sum() * min(top, book.size), 1e-30)
    rarity = np.clip(np.round(GRAIN / 2 * np.log(chance.max() / chance)), 0, 255).astype(np.uint8)
    chance = chance[np.argsort(rarity, kind="stable")]
    return replace(book, rarity=rarity, widths=_buckets(chance))


def _buckets(chance: np.ndarray) -> np.ndarray:
    """Widths of buckets over tokens in order: each the widest that is hit once at most, ``chance`` v being expected."""
    before = np.concatenate([[0.0], np.cumsum(chance)])
    widths, start, size = [], 0, len(chance)
    while start < size:
        room = int(np.searchsorted(before, before[start] + 1.0, "right")) - 1 - start
        width = max(room, 1).bit_length() - 1
        widths.append(width)
        start += 1 << width
    return np.asarray(widths, np.uint8)
