"""Distances between attention scores b h t t, one value per query and key or per query (TextBrewer, 2002.12620).

Scores are q k^T / sqrt(d) before the softmax (``scores_of``). ``mask`` b t marks real tokens; what stands at others is
left out as query and as key. With ``heads="pooled"`` scores are pooled over heads first, so that student and teacher
may have different numbers of them. float64 stays float64, anything narrower is computed in float32.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from limbeck.core.check import one_of, require
from limbeck.losses.divergence import upcast

Heads = Literal["each", "pooled"]


def scores_of(query: Tensor, key: Tensor) -> Tensor:
    """Attention scores b h t t of b h t d; keys that several query heads share are repeated."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    return upcast(query) @ upcast(key).transpose(-1, -2) / query.shape[-1] ** 0.5


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor, heads: Heads = "each") -> Tensor:
    """Squared difference of scores, b t t, 0 where either token is padding; averaged over heads, or of their sums."""
    s, t, real = _checked(student, teacher, mask, heads)
    if heads == "pooled":
        s, t = s.sum(1, keepdim=True), t.sum(1, keepdim=True)
    both = real[:, None, :, None] & real[:, None, None, :]
    return (s - t).masked_fill(~both, 0).square().mean(1)


def attention_ce(student: Tensor, teacher: Tensor, mask: Tensor, heads: Heads = "each") -> Tensor:
    """Cross-entropy of where a query looks among real keys, b t, 0 at padding; averaged over heads, or of their mean.

    Cross-entropy, not KL: equal scores give the teacher's entropy.
    """
    s, t, real = _checked(student, teacher, mask, heads)
    if heads == "pooled":
        s, t = s.mean(1, keepdim=True), t.mean(1, keepdim=True)
    hidden = ~real[:, None, None, :]
    low = torch.finfo(s.dtype).min
    s, t = s.masked_fill(hidden, low), t.masked_fill(hidden, low)
    values = -(t.softmax(-1) * s.log_softmax(-1).masked_fill(hidden, 0)).sum(-1)
    return values.mean(1).masked_fill(~real, 0)


def _checked(student: Tensor, teacher: Tensor, mask: Tensor, heads: str) -> tuple[Tensor, Tensor, Tensor]:
    one_of(heads, ("each", "pooled"), "attention: heads")
    require(
        heads == "pooled" or student.shape[1] == teacher.shape[1],
        f"the student has {student.shape[1]} heads and the teacher {teacher.shape[1]}; pool them first",
    )
    return upcast(student), upcast(teacher), mask.bool()
