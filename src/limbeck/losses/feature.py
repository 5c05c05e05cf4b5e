"""Distances between hidden states: per position, over the last axis.

Both inputs are ``... d`` with equal shapes (project the narrower one first); the result is ``...``. float64 stays
float64, anything narrower is computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.core.check import LimbeckError
from limbeck.losses.divergence import upcast


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over the width d (TinyBERT, 1909.10351)."""
    _check(student, teacher)
    return (upcast(student) - upcast(teacher)).square().mean(-1)


def hidden_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(student, teacher), in [0, 2] (DistilBERT, 1910.01108); 1, without gradient, for a zero vector."""
    _check(student, teacher)
    x, y = upcast(student), upcast(teacher)
    return 1 - (_unit(x) * _unit(y)).sum(-1)


def _unit(x: Tensor) -> Tensor:
    """x over its length; 0, with gradient 0, where the length is too small to give a direction."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    known = largest > torch.finfo(x.dtype).tiny
    scaled = torch.where(known, x / torch.where(known, largest, 1), 0)  # squares neither overflow nor vanish
    length = torch.where(known, scaled.square().sum(-1, keepdim=True), 1).sqrt()
    return scaled / length


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise LimbeckError(
            f"student states {tuple(student.shape)} and teacher states {tuple(teacher.shape)} differ in shape; "
            "give a projection to the teacher's width where the widths differ"
        )
