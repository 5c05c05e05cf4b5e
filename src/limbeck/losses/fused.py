"""Losses from hidden states and output layers, without the matrix of tokens x vocabulary.

``fused(divergence, student, teacher)`` is ``divergence(student_logits, teacher_logits)``, position by position, but
logits exist for a few hundred positions at a time: each chunk is projected, turned into values and the closed-form
gradient of its logits (``closed``), and that gradient is taken back to hidden states and weights at once (``sweep``).
Two chunks of logits and the gradients themselves are all that stays in memory.

Gradients are made in the forward pass for the usual case that all positions count alike (a sum, a mean): the two
projections and the student's way back are then the only large products. If the upstream gradient differs from position
to position, or a graph is used twice, the backward pass sweeps again. The result is exact either way. There is no
second derivative; whoever needs one calls the plain functions.

Logits are float32, or float64 where a weight is, also if weights are held in bfloat16 (``products``). CUDA takes the
same operations in larger chunks. ``LIMBECK_TRITON=1`` in the environment puts kernels in the place of the closed forms
(``triton_rows``); nobody has timed them on a GPU yet, so it is not the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.losses.closed import IGNORE, Divergence
from limbeck.losses.heads import Head, Logits
from limbeck.losses.sweep import Part, Plan


def fused(
    divergence: Divergence,
    student: Head,
    teacher: Logits,
    temperature: float | Tensor = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """``divergence`` per position, shape ``...``: one of ``closed.FORMS``, or a ``partial`` of one with settings.

    ``student`` and ``teacher`` have the same positions ``...`` and vocabulary, but each its own width. The teacher is
    a constant. ``temperature`` is a number or one per position, without a gradient. ``chunk`` is the number of
    positions taken at a time; any gives the same values. Raises ``LimbeckError`` for a divergence without a closed
    form, shapes that do not belong together, and teacher logits with NaN or plus infinity.
    """
    return fused_parts(student, teacher, [Part(divergence, temperature)], chunk)[0]


def fused_cross_entropy(student: Head, targets: Tensor, ignore: int = IGNORE, chunk: int | None = None) -> Tensor:
    """-log Q(target) per position; ``targets`` ... integer, and 0 where a target is ``ignore``."""
    targets = targets if ignore == IGNORE else targets.masked_fill(targets == ignore, IGNORE)
    return fused_parts(student, None, [Part(None, targets=targets)], chunk)[0]


def fused_parts(
    student: Head, teacher: Logits | None, parts: Sequence[Part], chunk: int | None = None
) -> tuple[Tensor, ...]:
    """Several losses of the same positions from one sweep, each as ``fused`` or ``fused_cross_entropy`` gives it."""
    positions, width = student.hidden.shape[:-1], student.hidden.shape[-1]
    inputs = student.hidden.reshape(-1, width), student.weight, student.bias
    plan = Plan(student._replace(hidden=inputs[0]), teacher, parts, chunk)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        values = _Fused.apply(*inputs, plan)
    else:
        values, _ = plan.run(inputs, (False, False, False))
    return tuple(values.reshape(len(parts), *positions))


class _Fused(torch.autograd.Function):
    """Values k n of k parts, with gradients for the student's hidden states, weight and bias."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(hidden, weight, bias)
        values, ctx.gradients = plan.run((hidden, weight, bias), ctx.needs_input_grad)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs, gradients = ctx.saved_tensors, ctx.gradients
        ctx.gradients = None  # handed over: autograd need not copy what nobody else holds
        factor = None if gradients is None else ctx.plan.common_factor(upstream)
        if factor is None:
            _, gradients = ctx.plan.run(inputs, ctx.needs_input_grad, upstream)
        elif factor != 1:
            gradients = [x if x is None else x.mul_(factor) for x in gradients]
        found = zip(gradients, inputs, strict=True)
        return *(x if x is None else x.to(like.dtype) for x, like in found), None
