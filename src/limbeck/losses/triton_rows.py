"""The closed forms of ``closed`` as one Triton kernel: three readings of a block of logits instead of three dozen.

Off unless the environment says ``LIMBECK_TRITON=1``: the numbers are tested against PyTorch's by Triton's interpreter
(``TRITON_INTERPRET=1``, tensors on the CPU), but the kernel has not been run, let alone timed, on a GPU. It takes
float32 logits; whatever it does not know, float64 for instance, stays with ``closed``.

P is the teacher, Q the student, ``gap`` = log P - log Q. Every divergence is a sum of ``v``, and its gradient for the
student's logits is Q - P, or a factor times Q (sum_v Q f - f); ``_terms`` gives v and f of one token.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from limbeck.losses import closed
from limbeck.losses.closed import IGNORE, Form, Rows

BLOCK, WARPS = 2048, 8
"""Tokens of a row at a time, and how many groups of threads share them."""

FORWARD_KL, SOFT, REVERSE_KL, SKEW_FORWARD, SKEW_REVERSE, JSD, VARIATION = (tl.constexpr(i) for i in range(7))


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is something here for the kernel to run on."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return dtype == torch.float32 and (device.type == "cuda" or (interpreted and device.type == "cpu"))


def kernel_form(form: Form) -> Form:
    """``form`` by the kernel; ``form`` itself if the kernel does not know it."""
    function, settings = (form.func, form.keywords) if isinstance(form, partial) else (form, {})
    if function is closed.cross_entropy:
        return cross_entropy
    return partial(KNOWN[function], **settings) if function in KNOWN else form


def forward_kl(rows: Rows) -> tuple[Tensor, float]:
    """As ``closed.forward_kl``."""
    return _divergence(rows, FORWARD_KL)


def reverse_kl(rows: Rows) -> tuple[Tensor, float]:
    """As ``closed.reverse_kl``."""
    return _divergence(rows, REVERSE_KL)


def skew_forward_kl(rows: Rows, alpha: float = 0.1) -> tuple[Tensor, float]:
    """As ``closed.skew_forward_kl``."""
    return _divergence(rows, SKEW_FORWARD, closed.share_in(alpha), 1 - alpha) if alpha else forward_kl(rows)


def skew_reverse_kl(rows: Rows, alpha: float = 0.1) -> tuple[Tensor, float]:
    """As ``closed.skew_reverse_kl``."""
    return _divergence(rows, SKEW_REVERSE, 1 - closed.share_in(alpha)) if alpha else reverse_kl(rows)


def jsd(rows: Rows, beta: float = 0.5) -> tuple[Tensor, float]:
    """As ``closed.jsd``."""
    if beta in (0, 1):
        return reverse_kl(rows) if beta else forward_kl(rows)
    return _divergence(rows, JSD, closed.share_in(beta), 1 - beta)


def total_variation(rows: Rows) -> tuple[Tensor, float]:
    """As ``closed.total_variation``."""
    return _divergence(rows, VARIATION, factor=0.5)


def soft_cross_entropy(rows: Rows) -> tuple[Tensor, float]:
    """As ``closed.soft_cross_entropy``."""
    return _divergence(rows, SOFT)


def interpolated_cross_entropy(rows: Rows, share: float = 1.0) -> tuple[Tensor, float]:
    """As ``closed.interpolated_cross_entropy``."""
    assert rows.teacher is not None
    torch.lerp(rows.student, rows.teacher, closed.share_in(share), out=rows.teacher)
    return soft_cross_entropy(rows)


def cross_entropy(rows: Rows, targets: Tensor) -> tuple[Tensor, float]:
    """As ``closed.cross_entropy``."""
    student, out = rows.student, rows.out
    count, size = student.shape
    values, strides = student.new_empty(count, 1), (student.stride(0), out.stride(0))
    with torch.cuda.device_of(student):
        _hard_rows[(count,)](student, targets.contiguous(), out, values, *strides, size, IGNORE, BLOCK, num_warps=WARPS)
    return values, 1.0


KNOWN: dict[Any, Form] = {
    closed.forward_kl: forward_kl,
    closed.reverse_kl: reverse_kl,
    closed.skew_forward_kl: skew_forward_kl,
    closed.skew_reverse_kl: skew_reverse_kl,
    closed.jsd: jsd,
    closed.total_variation: total_variation,
    closed.soft_cross_entropy: soft_cross_entropy,
    closed.interpolated_cross_entropy: interpolated_cross_entropy,
}


def _divergence(rows: Rows, kind: Any, share: float = 0.5, factor: float = 1.0) -> tuple[Tensor, float]:
    """``share`` is the teacher's in the mixture."""
    student, teacher, out = rows.student, rows.teacher, rows.out
    assert teacher is not None
    count, size = student.shape
    values = student.new_empty(count, 1)
    strides = student.stride(0), teacher.stride(0), out.stride(0)
    with torch.cuda.device_of(student):
        _soft_rows[(count,)](student, teacher, out, values, *strides, size, share, kind.value, BLOCK, num_warps=WARPS)
    return values, factor


@triton.jit
def _soft_rows(student, teacher, out, values, by_s, by_t, by_o, size, share, kind: tl.constexpr, block: tl.constexpr):
    """One row: tops and sums, then the value and sum_v Q f, then the gradient, which may take the student's place."""
    row = tl.program_id(0).to(tl.int64)
    student, teacher, out = student + row * by_s, teacher + row * by_t, out + row * by_o
    top_q, sum_q = _top_and_sum(student, size, block)
    top_p, sum_p = _top_and_sum(teacher, size, block)
    log_q = tl.log(sum_q)
    shift = (top_p - top_q) + (tl.log(sum_p) - log_q)
    value, mean = tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32)
    for start in range(0, size, block):
        at = start + tl.arange(0, block)
        x, y = tl.load(student + at, at < size, 0.0), tl.load(teacher + at, at < size, 0.0)
        q, p = tl.exp(x - top_q) / sum_q, tl.exp(y - top_p) / sum_p
        v, f = _terms(q, p, (y - x) - shift, (x - top_q) - log_q, share, kind)
        value += tl.where(at < size, v, 0.0)
        mean += tl.where(at < size, q * f, 0.0)
    tl.store(values + row, tl.sum(value, 0))
    expected = tl.sum(mean, 0)
    for start in range(0, size, block):
        at = start + tl.arange(0, block)
        x, y = tl.load(student + at, at < size, 0.0), tl.load(teacher + at, at < size, 0.0)
        q, p = tl.exp(x - top_q) / sum_q, tl.exp(y - top_p) / sum_p
        if kind <= SOFT:
            gradient = q - p
        else:
            v, f = _terms(q, p, (y - x) - shift, (x - top_q) - log_q, share, kind)
            gradient = q * (expected - f)
        tl.store(out + at, gradient, at < size)


@triton.jit
def _hard_rows(student, targets, out, values, by_s, by_o, size, ignore: tl.constexpr, block: tl.constexpr):
    """One row of the cross-entropy to a target."""
    row = tl.program_id(0).to(tl.int64)
    student, out = student + row * by_s, out + row * by_o
    target = tl.load(targets + row)
    counts, known = target != ignore, (target >= 0) & (target < size)
    top, total = _top_and_sum(student, size, block)
    said = tl.load(student + target, known, float("nan"))  # a target that is none: PyTorch's way will say so
    tl.store(values + row, tl.where(counts, (top - said) + tl.log(total), 0.0))
    for start in range(0, size, block):
        at = start + tl.arange(0, block)
        q = tl.exp(tl.load(student + at, at < size, 0.0) - top) / total
        tl.store(out + at, tl.where(counts, q - tl.where(at == target, 1.0, 0.0), 0.0), at < size)


@triton.jit
def _top_and_sum(logits, size, block: tl.constexpr):
    """The largest logit of a row, and the sum of exp(logit - largest)."""
    tops = tl.full((block,), -float("inf"), tl.float32)
    sums = tl.zeros((block,), tl.float32)
    for start in range(0, size, block):
        at = start + tl.arange(0, block)
        x = tl.load(logits + at, at < size, -float("inf"))
        higher = tl.maximum(tops, x)
        safe = tl.where(higher == -float("inf"), 0.0, higher)  # -inf less -inf is not a number
        sums = sums * tl.exp(tops - safe) + tl.exp(x - safe)
        tops = higher
    top = tl.max(tops, 0)
    return top, tl.sum(sums * tl.exp(tops - top), 0)


@triton.jit
def _terms(q, p, gap, log_q, share, kind: tl.constexpr):
    """v and f of the divergence ``kind``; see ``closed`` for why the mixture is taken relative to the larger side."""
    if kind == FORWARD_KL:
        v, f = p * gap, gap
    elif kind == SOFT:
        v, f = -p * log_q, gap
    elif kind == REVERSE_KL:
        v, f = -q * gap, gap
    elif kind == VARIATION:
        f = tl.where(p > q, 1.0, tl.where(p < q, -1.0, 0.0))
        v = tl.abs(q - p) / 2
    else:
        smaller = tl.where(gap > 0, 1 - share, share)
        mixture = _log1p(smaller * _expm1(-tl.abs(gap)))
        log_w = tl.minimum(gap, 0.0) - mixture  # log(P / M)
        ratio = tl.maximum(gap, 0.0) + mixture  # log(M / Q)
        if kind == SKEW_FORWARD:
            v, f = p * log_w, tl.exp(log_w)
        elif kind == SKEW_REVERSE:
            v, f = -q * ratio, ratio + (1 - share) * tl.exp(-ratio)
        else:
            v, f = share * p * log_w - (1 - share) * q * ratio, ratio
    return v, f


@triton.jit
def _log1p(x):
    """log(1 + x), exact near 0: what 1 + x loses, the quotient gives back."""
    one = 1.0 + x
    lost = one - 1.0
    return tl.where(lost == 0, x, tl.log(one) * (x / tl.where(lost == 0, 1.0, lost)))


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x <= 0, exact near 0: what the exponential is off by, its logarithm knows."""
    power = tl.exp(x)
    less = power - 1.0
    near = (power > 0.5) & (less != 0)
    return tl.where(near, less * (x / tl.log(tl.where(near, power, 0.5))), tl.where(less == 0, x, less))
