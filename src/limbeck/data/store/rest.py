"""How the tokens that are not among the best share the rest: log w_v + c . u_v - log Z (see ``book``)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.data.store.book import Book, Tables


def unexplained(log_probs: Tensor, log_share: Tensor) -> Tensor:
    """log p_v - log w_v; 0 for what is forbidden everywhere, bounded below for what is forbidden here."""
    floor = log_probs.amax(1, keepdim=True) - 40
    return torch.where(log_share.isneginf(), 0.0, torch.maximum(log_probs, floor) - log_share)


def coefficients(tables: Tables, log_probs: Tensor, ids: Tensor) -> Tensor:
    """c n r that explains ``log_probs`` n v outside ``ids`` n k best: least squares, weighted by the common shares.

    The directions have mean 0 and unit covariance under the shares, so that the normal equations differ from the
    identity by the tokens ``ids`` alone.
    """
    share, directions = tables.log_share.exp(), tables.directions
    left = unexplained(log_probs, tables.log_share).mul_(share)
    weights, own = share[ids], directions[ids]  # n k, n k r
    among = (1 - weights.sum(1)).clamp_min(1e-6)[:, None]
    pulled = torch.einsum("nk,nkr->nr", left.gather(1, ids), own)
    moment = (left @ directions - pulled) / among
    average = (left.sum(1) - left.gather(1, ids).sum(1))[:, None] / among
    centre = -torch.einsum("nk,nkr->nr", weights, own) / among
    known = torch.einsum("nk,nkr,nks->nrs", weights, own, own)
    unit = torch.eye(directions.shape[1], device=share.device)
    normal = (unit - known) / among[:, :, None] - centre[:, :, None] * centre[:, None, :]
    return torch.linalg.solve(normal + 1e-3 * unit, moment - average * centre)


def tilted(book: Book, log_probs: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What a position stores of its rest: coefficients n r as bytes (int8), and log Z n, from ``log_probs`` n v."""
    tables = book.on(log_probs.device)
    if book.tilts == 0:
        return log_probs.new_zeros((len(ids), 0), dtype=torch.int8), log_sum_outside(tables, ids)
    steps = torch.round(coefficients(tables, log_probs, ids) / tables.unit).clamp(-127, 127).to(torch.int8)
    others = spread(tables, steps).scatter_(1, ids, -math.inf)
    return steps, others.logsumexp(1)


def log_sum_outside(tables: Tables, ids: Tensor, real: Tensor | None = None) -> Tensor:
    """log Z n of shares that are not tilted: what is left of them outside ``ids`` n k, of which ``real`` count."""
    held = tables.log_share[ids].exp()
    held = held if real is None else held * real
    return torch.log1p(-held.sum(-1).clamp(max=1 - 1e-6))


def spread(tables: Tables, steps: Tensor) -> Tensor:
    """log w_v + c . u_v for coefficients n r in steps: n v in float32, also under autocast; not normalised."""
    if steps.shape[1] == 0:
        return tables.log_share.expand(len(steps), -1).clone()
    with torch.autocast(steps.device.type, enabled=False):
        return torch.addmm(tables.log_share, steps.float() * tables.unit, tables.directions.T)


def divergence(book: Book, log_probs: Tensor, top: int) -> Tensor:
    """KL n of ``log_probs`` n v to what ``book`` tells of them; their ``top`` best tokens are taken to be exact."""
    ids = log_probs.topk(min(top, book.size), -1).indices
    others = log_probs.exp().scatter_(1, ids, 0.0)
    rest = others.sum(1)
    steps, reach = tilted(book, log_probs, ids)
    told = spread(book.on(log_probs.device), steps) - reach[:, None] + rest.log()[:, None]
    gap = torch.where(others > 0, log_probs - told.clamp_min(-100), 0.0)
    return (others * gap).sum(1)
