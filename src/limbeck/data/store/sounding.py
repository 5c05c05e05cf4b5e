"""A store's code book from a sample of what the teacher says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from limbeck.core.check import require
from limbeck.data.store.book import FORBIDDEN, GRAIN, Book, ordered, plain_book
from limbeck.data.store.rest import coefficients, divergence, unexplained

FLOOR = 1e-3
"""Share of the rest that is spread evenly, so that no token is impossible because the sample missed it."""
NUMBERS = (0, 4, 8, 16, 24, 32, 40, 48, 56, 64)
"""How many directions may be chosen."""
WORTH = 0.97
"""More directions are taken if the divergence falls to this share of what it was."""
MARGIN = 0.9
"""Share of the wanted divergence that the sample has to reach, for the data to reach all of it."""


def make_book(log_probs: Tensor, top: int, tilts: int | None = None, within: float = 0.04) -> Book:
    """The book for sets of ``top`` tokens from a sample of log-probabilities n v, in float32 (overwritten).

    ``tilts`` directions; None: the fewest with which a fresh quarter of the sample is told within ``within`` nats, or
    as many as still help.
    """
    require(tilts is None or 0 <= tilts <= NUMBERS[-1], f"a store keeps 0 to {NUMBERS[-1]} directions, but got {tilts}")
    fresh = log_probs[::4].clone() if tilts is None and len(log_probs) >= 8 else log_probs[:0]
    kept = log_probs if len(fresh) == 0 else log_probs[torch.arange(len(log_probs)) % 4 != 0]
    most = (NUMBERS[-1] if tilts is None else tilts) if len(kept) >= 8 else 0
    book = _fitted(kept, min(top, log_probs.shape[1]), min(most, len(kept) // 4))
    return book if len(fresh) == 0 else book.first(_enough(book, fresh, top, within))


def _fitted(log_probs: Tensor, top: int, tilts: int) -> Book:
    """The book of ``log_probs`` n v with ``tilts`` directions."""
    size = log_probs.shape[1]
    ids = log_probs.topk(top, -1).indices
    others = log_probs.exp().scatter_(1, ids, 0.0)
    rest, mass = others.sum(1), others.sum(0)
    met = rest.sum() - torch.zeros(size).index_add_(0, ids.flatten(), rest.repeat_interleave(top))
    share = (mass + FLOOR / size * rest.sum()) / (met + FLOOR * rest.sum()).clamp_min(1e-30)
    share = share.clamp_min(1e-30)
    code = torch.round(GRAIN * (share.max().log() - share.log())).clamp(0, FORBIDDEN)
    hits = torch.bincount(ids.flatten(), minlength=size).double()
    unseen = (hits == 1).sum() + 1  # Good and Turing: as much as was seen once is still to be seen
    hits = hits * (1 - unseen / (hits.sum() + 1)) + unseen * (share / share.sum()).double()
    book = replace(plain_book(size), shares=code.to(torch.uint8).numpy())
    book = ordered(book, hits.numpy(), top)
    return _directed(book, log_probs, ids, mass, tilts) if tilts and top < size else book


def _directed(book: Book, log_probs: Tensor, ids: Tensor, mass: Tensor, tilts: int) -> Book:
    """``book`` with the principal directions of what its shares do not explain, weighted by the mass that they hold."""
    log_share = book.tables.log_share
    share = log_share.exp()
    left = unexplained(log_probs, log_share).scatter_(1, ids, 0.0)
    among = 1 - share[ids].sum(1, keepdim=True)
    left -= (left @ share)[:, None] / among.clamp_min(1e-6)
    left.scatter_(1, ids, 0.0)
    weight = (mass / mass.sum() + 1e-9).sqrt()
    found = _principal(left * weight, tilts) / weight[:, None]
    found -= share @ found
    tilts = found.shape[1]
    spread = torch.linalg.cholesky((found.T * share) @ found + 1e-6 * torch.eye(tilts))
    found = torch.linalg.solve_triangular(spread, found.T, upper=False).T
    scale = found.abs().amax(0).clamp_min(1e-12) / 127
    directions = torch.round(found / scale).to(torch.int8).numpy()
    ready = replace(book, directions=directions, scales=np.ones((2, tilts), np.float32))
    ready.scales[0] = scale.numpy()
    reach = torch.cat(
        [coefficients(ready.tables, *part) for part in zip(log_probs.split(64), ids.split(64), strict=True)]
    )
    ready.scales[1] = (reach.abs().amax(0).clamp_min(1e-6) / 127).numpy()
    return replace(ready)


def _principal(rows: Tensor, number: int) -> Tensor:
    """The first ``number`` right singular vectors of ``rows`` n v, as v r, by subspace iteration (always the same)."""
    start = torch.randn(rows.shape[0], min(number + 8, *rows.shape), generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(rows.T @ start).Q
    for _ in range(3):
        basis = torch.linalg.qr(rows.T @ (rows @ basis)).Q
    turned = torch.linalg.svd(rows @ basis, full_matrices=False).Vh
    return basis @ turned[:number].T


def _enough(book: Book, fresh: Tensor, top: int, within: float) -> int:
    """The number of directions that first tells ``fresh`` n v well within ``within``, or that tells it best."""
    best, chosen = math.inf, 0
    for number in (n for n in NUMBERS if n <= book.tilts):
        told = sum(float(divergence(book.first(number), part, top).sum()) for part in fresh.split(64)) / len(fresh)
        if told <= MARGIN * within:
            return number
        if told < WORTH * best:
            best, chosen = told, number
    return chosen
