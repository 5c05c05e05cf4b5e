"""Divergences in closed form: values and the gradient for the student's logits, in one sweep over a few rows.

``divergence`` says what is meant, this file how ``fused`` computes it without autograd. P is the teacher, Q the student
and ``gap`` = log P - log Q. Rows are few enough to stay in a processor's cache, and every operation writes into a
buffer that is there already.

What is not finite here (a logit of -inf on one side, say) is left to the function in ``divergence``, see ``fused``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limbeck.core.check import require
from limbeck.losses import divergence as plain
from limbeck.losses.decoupled import adaptive_kl

IGNORE = -100


class Rows:
    """Logits r v of student and teacher after the temperature, and what the closed forms want to know of them.

    Everything is computed in place: ``gap`` takes the teacher's buffer, ``out`` may be the student's, and ``spare``
    gives up to three more to whoever wants them, by number.
    """

    def __init__(self, student: Tensor, teacher: Tensor | None, out: Tensor, spare: Callable[[int], Tensor]) -> None:
        self.student, self.teacher, self.out, self.spare = student, teacher, out, spare

    def q(self) -> Tensor:
        """Q, r v."""
        self.top_q = self.student.amax(-1, keepdim=True)
        q = _softmax(self.student, self.spare(0))
        self.log_q = -q.amax(-1, keepdim=True).log()  # the logarithm of the sum of exp(logit - top)
        return q

    def p(self) -> Tensor:
        """P, r v."""
        assert self.teacher is not None
        self.top_p = self.teacher.amax(-1, keepdim=True)
        p = _softmax(self.teacher, self.spare(1))
        self.log_p = -p.amax(-1, keepdim=True).log()
        return p

    def gap(self) -> Tensor:
        """log P - log Q, r v, in place of the teacher's logits; after ``q`` and ``p``."""
        assert self.teacher is not None
        shift = (self.top_p - self.top_q) + (self.log_p - self.log_q)
        return self.teacher.sub_(self.student).sub_(shift)


Divergence = Callable[..., Tensor]
Form = Callable[..., tuple[Tensor, float]]
"""Rows and settings -> values r, and a factor; the gradient for the student's logits is that factor times ``out``."""


def _softmax(logits: Tensor, into: Tensor) -> Tensor:
    """Probabilities whose sum is 1 to the last digit: on CPUs PyTorch's own is off by some 4e-6 for 65,536 tokens.

    (It adds them up one by one, and ``sum`` pairwise. Where P and Q have little in common, the error of the gradient of
    ``jsd`` is 20 times as large without this; it takes 1.5 % of the time.)
    """
    shares = torch.softmax(logits, -1, out=into)
    return shares if shares.is_cuda else shares.mul_(1 / shares.sum(-1, keepdim=True))


def _sum(a: Tensor, b: Tensor, into: Tensor) -> Tensor:
    """sum_v a b as r 1, by way of the buffer ``into``."""
    return torch.mul(a, b, out=into).sum(-1, keepdim=True)


def forward_kl(rows: Rows) -> tuple[Tensor, float]:
    """Gradient Q - P."""
    q, p, gap = rows.q(), rows.p(), rows.gap()
    values = _sum(p, gap, gap)
    torch.sub(q, p, out=rows.out)
    return values, 1.0


def reverse_kl(rows: Rows) -> tuple[Tensor, float]:
    """Gradient -Q (gap + value)."""
    q, _, gap = rows.q(), rows.p(), rows.gap()
    values = -_sum(q, gap, rows.out)
    torch.mul(gap.add_(values), q, out=rows.out)
    return values, -1.0


def skew_forward_kl(rows: Rows, alpha: float = 0.1) -> tuple[Tensor, float]:
    """With w = P / M: gradient (1 - alpha) Q (sum_v Q w - w)."""
    share_in(alpha)
    if alpha == 0:
        return forward_kl(rows)
    q, p, gap = rows.q(), rows.p(), rows.gap()
    mixture = _mixture(rows, gap, alpha)
    log_w = gap.clamp_(max=0).sub_(mixture)
    values = _sum(p, log_w, p)
    weighted = log_w.exp_().mul_(q)
    torch.mul(q, weighted.sum(-1, keepdim=True), out=rows.out).sub_(weighted)
    return values, 1 - alpha


def skew_reverse_kl(rows: Rows, alpha: float = 0.1) -> tuple[Tensor, float]:
    """With f = log(M / Q) + alpha Q / M: gradient Q (sum_v Q f - f)."""
    share_in(alpha)
    if alpha == 0:
        return reverse_kl(rows)
    q, p, gap = rows.q(), rows.p(), rows.gap()
    mixture = _mixture(rows, gap, 1 - alpha)
    ratio = gap.clamp_(min=0).add_(mixture)  # log(M / Q)
    values = -_sum(q, ratio, p)
    f = torch.neg(ratio, out=rows.out).exp_().mul_(alpha).add_(ratio)
    f.sub_(_sum(q, f, p)).mul_(q)
    return values, -1.0


def jsd(rows: Rows, beta: float = 0.5) -> tuple[Tensor, float]:
    """With f = log(M / Q): gradient (1 - beta) Q (sum_v Q f - f)."""
    share_in(beta)
    if beta in (0, 1):
        return reverse_kl(rows) if beta else forward_kl(rows)
    q, p, gap = rows.q(), rows.p(), rows.gap()
    mixture = _mixture(rows, gap, beta)
    log_w = torch.clamp(gap, max=0, out=rows.spare(2)).sub_(mixture)  # log(P / M)
    of_p = _sum(p, log_w, p)
    f = gap.clamp_(min=0).add_(mixture)
    of_q = _sum(q, f, p)
    torch.mul(f.sub_(of_q), q, out=rows.out)
    return beta * of_p - (1 - beta) * of_q, beta - 1


def _mixture(rows: Rows, gap: Tensor, share: float) -> Tensor:
    """log(M / max(P, Q)) for M = share P + (1 - share) Q, in ``out``: log1p(c expm1(-abs(gap))).

    c is the share of the smaller of the two. Nothing overflows, and nothing is lost where P and Q are close.
    """
    relative = torch.abs(gap, out=rows.out).neg_().expm1_()
    if share == 0.5:
        return relative.mul_(0.5).log1p_()
    smaller = torch.sgn(gap, out=rows.spare(2)).mul_(0.5 - share).add_(0.5)
    return relative.mul_(smaller).log1p_()


def total_variation(rows: Rows) -> tuple[Tensor, float]:
    """With the sign s of Q - P: gradient Q (s - sum_v Q s) / 2."""
    q, p = rows.q(), rows.p()
    apart = torch.sub(q, p, out=rows.out)
    values = torch.abs(apart, out=p).sum(-1, keepdim=True) / 2
    sign = apart.sgn_()
    sign.sub_(_sum(q, sign, p)).mul_(q)
    return values, 0.5


def soft_cross_entropy(rows: Rows) -> tuple[Tensor, float]:
    """Gradient Q - P."""
    assert rows.teacher is not None
    q, p = rows.q(), rows.p()
    surprise = torch.sub(rows.student, rows.top_q, out=rows.teacher).sub_(rows.log_q)
    values = -_sum(p, surprise, surprise)
    torch.sub(q, p, out=rows.out)
    return values, 1.0


def interpolated_cross_entropy(rows: Rows, share: float = 1.0) -> tuple[Tensor, float]:
    """As ``soft_cross_entropy``: the target is a constant for the gradient."""
    share_in(share)
    assert rows.teacher is not None
    torch.lerp(rows.student, rows.teacher, share, out=rows.teacher)
    return soft_cross_entropy(rows)


def cross_entropy(rows: Rows, targets: Tensor) -> tuple[Tensor, float]:
    """Gradient Q - 1 at the target; ``targets`` r, ``IGNORE`` where there is none. No teacher."""
    skipped = (targets == IGNORE).unsqueeze(-1)
    index = targets.unsqueeze(-1).masked_fill(skipped, 0)
    q = rows.q()
    values = rows.top_q + rows.log_q - rows.student.gather(-1, index)
    rows.out.copy_(q).scatter_add_(-1, index, q.new_full((), -1.0).expand(index.shape))
    if skipped.any():
        rows.out.masked_fill_(skipped, 0)
        values.masked_fill_(skipped, 0)
    return values, 1.0


def by_autograd(
    rows: Rows, divergence: Divergence | None = None, targets: Tensor | None = None, **settings: Any
) -> tuple[Tensor, float]:
    """``divergence`` of the rows, or their cross-entropy to ``targets``, and the gradient, by the plain functions.

    For what has no closed form, and for rows in which a closed form meets what is not finite. Only here is it worth
    asking whether the teacher is to blame; if so it is refused.
    """
    if rows.teacher is not None:
        plain.refuse_teacher(rows.teacher)
    with torch.enable_grad():
        student = rows.student.detach().clone().requires_grad_()
        if divergence is None:
            assert targets is not None
            values = plain.cross_entropy(student, targets)
        else:
            values = divergence(student, rows.teacher, **settings)
        (gradient,) = torch.autograd.grad(values.sum(), student)
    rows.out.copy_(gradient)
    return values.detach().unsqueeze(-1), 1.0


FORMS: dict[Divergence, Form] = {
    plain.forward_kl: forward_kl,
    plain.reverse_kl: reverse_kl,
    plain.skew_forward_kl: skew_forward_kl,
    plain.skew_reverse_kl: skew_reverse_kl,
    plain.jsd: jsd,
    plain.total_variation: total_variation,
    plain.soft_cross_entropy: soft_cross_entropy,
    plain.interpolated_cross_entropy: interpolated_cross_entropy,
    adaptive_kl: partial(by_autograd, divergence=adaptive_kl),
}
"""The divergences that ``fused`` takes, and how it computes them."""


def closed_form(divergence: Divergence) -> Form | None:
    """The form of a function in ``FORMS``, or of a ``partial`` of one that names its settings; else None."""
    settings: dict[str, Any] = {}
    while isinstance(divergence, partial) and not divergence.args:
        settings = {**divergence.keywords, **settings}
        divergence = divergence.func
    known = None if "temperature" in settings else FORMS.get(divergence)
    return partial(known, **settings) if known and settings else known


def share_in(value: float) -> float:
    """The weight of a mixture, refused if it is none."""
    require(0 <= value <= 1, f"the weight of a mixture must lie in [0, 1], but got {value}")
    return value
