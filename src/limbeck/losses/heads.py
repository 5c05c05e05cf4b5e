"""Where logits come from: states and an output layer, or whoever has them already."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from limbeck.core.check import require
from limbeck.losses import products
from limbeck.losses.divergence import same_vocabulary


class Head(NamedTuple):
    """States and the output layer that reads them: ``logits = softcap(scale * (hidden @ weight.T + bias))``.

    ``hidden`` ... d, ``weight`` v d, ``bias`` v or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


Logits = Head | Tensor | Callable[[slice], Tensor]
"""A teacher: states and output layer, logits ... v, or a function that gives the logits m v of a slice of positions."""

Side = TypeVar("Side")


def project(side: Logits | None, at: slice, out: Tensor) -> None:
    """Logits of the positions ``at``, but for what ``finish`` does."""
    if isinstance(side, Head):
        products.logits(side.hidden[at], side.weight, out)
    elif side is not None:
        given = side[at] if isinstance(side, Tensor) else side(at)
        require(
            given.shape == out.shape,
            f"the teacher gives logits of shape {tuple(given.shape)} where {tuple(out.shape)} were expected",
        )
        out.copy_(given)


def finish(side: Logits | None, logits: Tensor) -> None:
    """Bias, scale and soft cap, in place."""
    if not isinstance(side, Head):
        return
    if side.bias is not None:
        logits.add_(side.bias)
    if side.scale != 1:
        logits.mul_(side.scale)
    if side.softcap is not None:
        logits.div_(side.softcap).tanh_().mul_(side.softcap)


def held(side: Side, dtype: torch.dtype | None) -> Side:
    """With the output layer held in ``dtype``, if there is a layer and a ``dtype``."""
    if dtype is None or not isinstance(side, Head):
        return side
    return side._replace(weight=side.weight.to(dtype))


def flat_teacher(teacher: Logits | None, count: int, size: int) -> Logits | None:
    """A teacher with flat positions, refused if it does not belong to ``count`` positions and ``size`` tokens."""
    if teacher is None or not isinstance(teacher, (Head, Tensor)):
        return teacher
    flat = teacher.hidden if isinstance(teacher, Head) else teacher
    flat = flat.detach().reshape(-1, flat.shape[-1])
    theirs = teacher.weight.shape[0] if isinstance(teacher, Head) else flat.shape[-1]
    same_vocabulary(size, theirs)
    require(len(flat) == count, f"the student has {count} positions and the teacher {len(flat)}; select the same ones")
    return teacher._replace(hidden=flat) if isinstance(teacher, Head) else flat
