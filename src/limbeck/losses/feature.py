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


def hidden_sse(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of squared differences over the width d, so it grows with d (2210.02871, released code)."""
    _check(student, teacher)
    return (upcast(student) - upcast(teacher)).square().sum(-1)


def hidden_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(student, teacher), in [0, 2] (DistilBERT, 1910.01108); 1, without gradient, for a zero vector."""
    _check(student, teacher)
    x, y = upcast(student), upcast(teacher)
    return 1 - (_unit(x) * _unit(y)).sum(-1)


def logit_mse(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean squared difference of logits over the temperature (Ba and Caruana 2014, 1312.6184)."""
    return hidden_mse(student, teacher) / temperature**2


def hidden_ce(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of the softmax over the width d (TextBrewer, 2002.12620); not 0 for equal states."""
    _check(student, teacher)
    return -(upcast(teacher).softmax(-1) * upcast(student).log_softmax(-1)).sum(-1)


def hidden_pkd(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the two directions, 2 (1 - cos), in [0, 4] (PKD, 1908.09355)."""
    _check(student, teacher)
    return (_unit(upcast(student)) - _unit(upcast(teacher))).square().sum(-1)


def flow_mse(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """Per row b: mean squared difference of A^T B / length, d x d, for the states b t d of two layers A and B.

    FSP (Yim et al., CVPR 2017): how one layer's features turn into another's. ``mask`` b t marks real tokens.
    """
    real = mask.unsqueeze(-1)
    grams = [(upcast(a) * real).transpose(1, 2) @ (upcast(b) * real) for a, b in (student, teacher)]
    length = mask.sum(1).clamp(min=1)[:, None, None]
    _check(*grams)
    return ((grams[0] - grams[1]) / length).square().flatten(1).mean(1)


def kernel_mse(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """Squared difference of A B^T / width, b t t, 0 at padding; the widths of student and teacher may differ.

    NST's linear kernel (Huang and Wang 2017, 1707.01219), as TextBrewer's mmd.
    """
    grams = [upcast(a) @ upcast(b).transpose(1, 2) / a.shape[-1] for a, b in (student, teacher)]
    both = mask.bool()[:, :, None] & mask.bool()[:, None, :]
    return (grams[0] - grams[1]).masked_fill(~both, 0).square()


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
