"""Self-attention relations: how the positions of one layer relate, as distributions over positions.

MiniLM (2002.10957) compares attention and value relations head by head, MiniLMv2 (2012.15828) joins the heads and
splits them again into any number of relation heads, so that teacher and student need neither the same width nor the
same heads. The relation of X and Y is softmax(X Y^T / sqrt(d)), d the width of one head of that model; the loss is
KL(teacher || student) over the keys, averaged per row over heads and real queries. Rows and columns are restricted to
real tokens, wherever the padding stands.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.core.check import LimbeckError, require
from limbeck.losses.divergence import upcast

Pair = tuple[Tensor, Tensor]
"""Two of q, k and v of one layer, each b h t d; the second may have fewer (grouped) heads than the first."""

SCORES_AT_ONCE = 2**24
"""Entries of b h t t held at a time per model (64 MiB in float32): more heads than that are taken in turns."""


def relation_kl(
    student: Pair,
    teacher: Pair,
    mask: Tensor,
    heads: int | None = None,
    causal: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """KL of the teacher's relation to the student's, ``b``, in nats per query and head.

    ``student`` and ``teacher`` are pairs such as (q, k) or (v, v), each tensor b h t d; ``mask`` b t is true at real
    tokens. ``heads`` joins the heads of each model and splits them into that many relation heads (v2); without it the
    heads are compared one to one (v1) and must be equally many. Grouped heads of one side of a pair are repeated to
    match the other side.

    ``causal`` restricts query i to keys up to i, as a decoder's attention does; value relations are full by default,
    because nothing in a decoder forbids comparing values across positions. The first query then has one key and a KL of
    0, which dilutes the mean. A row without real tokens gives 0. ``chunk`` heads are computed at a time (chosen by size
    if not given), and recomputed in the backward pass, so that b h t t never stands in memory for all heads.
    """
    pairs = _relation_heads(student, heads), _relation_heads(teacher, heads)
    _check(pairs[0], pairs[1], mask)
    count, length = pairs[0][0].shape[1:3]
    allowed = _allowed(mask.bool(), causal)
    size = chunk or max(1, SCORES_AT_ONCE // max(1, mask.shape[0] * length * length))
    parts = [_part(pairs, slice(start, start + size), allowed) for start in range(0, count, size)]
    return torch.stack(parts).sum(0) / (count * mask.sum(-1).clamp(min=1))


def attention_kl(
    student: tuple[Tensor, Tensor, Tensor], teacher: tuple[Tensor, Tensor, Tensor], mask: Tensor, causal: bool = False
) -> Tensor:
    """MiniLM's attention relation (2002.10957) from (q, k, v) of one layer of each model: ``b``, as ``relation_kl``."""
    return relation_kl(student[:2], teacher[:2], mask, causal=causal)


def value_kl(
    student: tuple[Tensor, Tensor, Tensor], teacher: tuple[Tensor, Tensor, Tensor], mask: Tensor, causal: bool = False
) -> Tensor:
    """MiniLM's value relation (2002.10957) from (q, k, v) of one layer of each model: ``b``, as ``relation_kl``."""
    return relation_kl((student[2], student[2]), (teacher[2], teacher[2]), mask, causal=causal)


def _part(pairs: tuple[Pair, Pair], part: slice, allowed: Tensor) -> Tensor:
    """Sum of the KL over the heads in ``part`` and the real queries, b; recomputed in the backward pass if not all."""
    tensors = [x[:, part] for pair in pairs for x in pair]
    if part.stop >= pairs[0][0].shape[1] and part.start == 0:
        return _summed_kl(allowed, *tensors)
    return checkpoint(_summed_kl, allowed, *tensors, use_reentrant=False, preserve_rng_state=False)


def _summed_kl(allowed: Tensor, a_student: Tensor, b_student: Tensor, a_teacher: Tensor, b_teacher: Tensor) -> Tensor:
    """Sum over heads and queries of KL(teacher || student) over the allowed keys, b."""
    q, p = _log_relation(a_student, b_student, allowed), _log_relation(a_teacher, b_teacher, allowed)
    return (p.exp() * (p - q)).masked_fill(~allowed, 0).sum((1, 2, 3))


def _log_relation(first: Tensor, second: Tensor, allowed: Tensor) -> Tensor:
    """log softmax(first second^T / sqrt(d)) over the allowed keys, b h t t; a finite filling elsewhere."""
    with torch.autocast(first.device.type, enabled=False):  # it would take the product in half precision
        scores = upcast(first) @ upcast(second).transpose(-1, -2) / math.sqrt(first.shape[-1])
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min / 2).log_softmax(-1)


def _allowed(mask: Tensor, causal: bool) -> Tensor:
    """Which key a query may see, b 1 t t: both are real, and with ``causal`` the key does not come later."""
    allowed = mask[:, None, :, None] & mask[:, None, None, :]
    return allowed.tril() if causal else allowed


def _relation_heads(pair: Pair, heads: int | None) -> Pair:
    """The pair with equal numbers of heads, joined and split again where ``heads`` says so."""
    first, second = pair
    for one in pair:
        require(one.dim() == 4, f"a relation needs b h t d, but got {tuple(one.shape)}")
    most = max(first.shape[1], second.shape[1])
    first, second = _repeated(first, most), _repeated(second, most)
    return (first, second) if heads is None else (_resplit(first, heads), _resplit(second, heads))


def _repeated(x: Tensor, heads: int) -> Tensor:
    """Grouped heads repeated to ``heads``, each group's head beside its queries (as grouped attention does)."""
    require(heads % x.shape[1] == 0, f"{x.shape[1]} grouped heads do not divide {heads} heads")
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _resplit(x: Tensor, heads: int) -> Tensor:
    """b h t d joined to b t (h d) and split into ``heads`` relation heads."""
    b, h, t, d = x.shape
    require(
        heads > 0 and (h * d) % heads == 0,
        f"{heads} relation heads do not divide a width of {h * d} ({h} heads of {d}); choose a common divisor of both "
        "models' widths",
    )
    return x.transpose(1, 2).reshape(b, t, heads, h * d // heads).transpose(1, 2)


def _check(student: Pair, teacher: Pair, mask: Tensor) -> None:
    """Refuse heads or positions that do not match one to one."""
    s, t = student[0], teacher[0]
    if s.shape[1] != t.shape[1]:
        raise LimbeckError(
            f"the student has {s.shape[1]} heads and the teacher {t.shape[1]}; give heads=, a number that divides both "
            "widths, to split them anew"
        )
    same = s.shape[0] == t.shape[0] == mask.shape[0] and s.shape[2] == t.shape[2] == mask.shape[1]
    require(
        same and mask.dim() == 2,
        f"student {tuple(s.shape)}, teacher {tuple(t.shape)} (b h t d) and mask {tuple(mask.shape)} (b t) do not "
        "belong to the same batch; relations need the same tokens at the same positions",
    )
