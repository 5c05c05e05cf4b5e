"""Divergences and cross-entropies between next-token (or class) distributions.

P is the teacher, Q the student, both after division by the temperature; a function called a divergence is 0 for equal
inputs, a function called cross-entropy is one. Every function takes logits ``... v`` (any leading shape, equal for
both), reduces the last axis and returns ``...`` in nats per item. float64 stays float64, anything narrower is computed
in float32. There is no factor T**2 here: whoever wants Hinton's scaling multiplies.

Everything happens in log space, so logits of any size are fine. A logit of -inf says "cannot be said": where both say
so the term is 0; where only one does, log 0 counts as ``LOG_ZERO`` nats, which keeps values and gradients finite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.core.check import LimbeckError, require

LOG_ZERO = -1e6
"""What stands for log 0, in nats: far below any log-probability that a model gives, far from overflow in float32."""


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(P || Q) = sum_v P log(P / Q): the student has to cover all that the teacher says (Hinton et al. 2015)."""
    q, p = log_pair(student, teacher, temperature)
    return kl_of_logs(p, q)


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(Q || P) = sum_v Q log(Q / P): the student may leave out modes but not invent any (MiniLLM, 2306.08543)."""
    q, p = log_pair(student, teacher, temperature)
    return kl_of_logs(q, p)


def skew_forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, alpha: float = 0.1) -> Tensor:
    """KL(P || alpha P + (1 - alpha) Q) (DistiLLM, 2402.03898; the authors' code returns its cross-entropy)."""
    q, p = log_pair(student, teacher, temperature)
    return _kl_to_mixture(p, q, alpha)


def skew_reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, alpha: float = 0.1) -> Tensor:
    """KL(Q || (1 - alpha) P + alpha Q) (DistiLLM, 2402.03898; the roles swap against the forward one)."""
    q, p = log_pair(student, teacher, temperature)
    return _kl_to_mixture(q, p, alpha)


def jsd(student: Tensor, teacher: Tensor, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence, beta KL(P || M) + (1 - beta) KL(Q || M), M = beta P + (1 - beta) Q.

    As GKD (2306.13649), where beta 0 and 1 are set to forward and reverse KL. That is a jump: near its ends the
    divergence itself goes to 0 like beta (1 - beta), so a schedule over beta must divide by that or treat the ends
    apart.
    """
    q, p = log_pair(student, teacher, temperature)
    if beta == 0:
        return kl_of_logs(p, q)
    if beta == 1:
        return kl_of_logs(q, p)
    return beta * _kl_to_mixture(p, q, beta) + (1 - beta) * _kl_to_mixture(q, p, 1 - beta)


def total_variation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Half the L1 distance, 1/2 sum_v abs(P - Q), in [0, 1]."""
    q, p = log_pair(student, teacher, temperature)
    return (p.exp() - q.exp()).abs().sum(-1) / 2


def soft_cross_entropy(student: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """-sum_v P log Q with P given by logits: forward KL plus the target's entropy, with the same student gradient."""
    q, p = log_pair(student, target, temperature)
    return -(p.exp() * q).sum(-1)


def interpolated_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, share: float = 1.0
) -> Tensor:
    """Cross-entropy of the student to softmax(``interpolate(student, teacher, share)``) (TAID, 2501.16937)."""
    _check(student, teacher, temperature)
    return soft_cross_entropy(student, interpolate(student, teacher, share), temperature)


def interpolate(student: Tensor, teacher: Tensor, share: float) -> Tensor:
    """Logits (1 - share) student + share teacher, ``... v``, in fp32 or float64 and without a gradient.

    A token that either side forbids (-inf) is forbidden.
    """
    s, z = upcast(student.detach()), upcast(teacher.detach())
    mixed = (1 - share) * s + share * z
    return mixed.masked_fill(s.isneginf() | z.isneginf(), -math.inf)  # else 0 * inf at a share of 0 or 1


def soft_cross_entropy_probs(student: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """-sum_v P log Q with P given as probabilities ``... v``; the temperature acts on the student only."""
    _check(student, target, temperature)
    return -(upcast(target) * log_probs(student, temperature)).sum(-1)


def forward_kl_probs(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(P || Q) with P given as probabilities ``... v``; the temperature acts on the student only."""
    p = upcast(teacher)
    return soft_cross_entropy_probs(student, p, temperature) + torch.xlogy(p, p).sum(-1)


def cross_entropy(logits: Tensor, targets: Tensor, ignore: int = -100) -> Tensor:
    """-log Q(target) per item; ``logits`` ... v, ``targets`` ... integer, and 0 where a target is ``ignore``."""
    require(
        logits.shape[:-1] == targets.shape,
        f"cross_entropy: logits {tuple(logits.shape)} need targets of shape {tuple(logits.shape[:-1])}, "
        f"but got {tuple(targets.shape)}",
    )
    skipped = targets == ignore
    index = targets.masked_fill(skipped, 0).unsqueeze(-1)
    return -log_probs(logits).gather(-1, index).squeeze(-1).masked_fill(skipped, 0)


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) over the last axis, in float32 or float64, with ``LOG_ZERO`` for log 0."""
    logits = upcast(logits)
    scaled = logits if temperature == 1 else logits / temperature
    values = torch.log_softmax(scaled, -1)
    return values.masked_fill(values == -math.inf, LOG_ZERO)


def upcast(values: Tensor) -> Tensor:
    """float64 as it is, everything else as float32."""
    return values if values.dtype == torch.float64 else values.float()


def log_pair(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both, student first, after the checks."""
    _check(student, teacher, temperature)
    return log_probs(student, temperature), log_probs(teacher, temperature)


def _check(student: Tensor, teacher: Tensor, temperature: float) -> None:
    """Refuse what would broadcast silently, a distribution over one candidate, and a temperature that is none."""
    if student.shape != teacher.shape:
        raise LimbeckError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have the same shape; "
            "select the same positions and use models that share a vocabulary"
        )
    require(student.shape[-1] > 1, "a softmax over one candidate is always 1 and teaches nothing; give at least two")
    require(temperature > 0, f"the temperature must be positive, but got {temperature}")


def same_vocabulary(student: int, teacher: int) -> None:
    """Refuse vocabularies of different sizes."""
    if student != teacher:
        raise LimbeckError(
            f"the student's vocabulary has {student} entries and the teacher's {teacher}; check that both use the same "
            "tokenizer, and if only an output layer is padded, cut it to the tokenizer's size (resize_token_embeddings)"
        )


def refuse_teacher(logits: Tensor) -> None:
    """Refuse teacher logits ... v that hold NaN or +inf, or nothing that may be said."""
    if not torch.isfinite(logits.amax(-1)).all():  # the maximum shows NaN, +inf, and rows of -inf alone
        raise LimbeckError(
            "the teacher's logits hold NaN or infinity; check its weights and its precision (float16 overflows where "
            "bfloat16 does not)"
        )


def kl_of_logs(p: Tensor, q: Tensor) -> Tensor:
    """KL of the distributions with log-probabilities ``p`` and ``q``, in this order."""
    return (p.exp() * (p - q)).sum(-1)


def _kl_to_mixture(p: Tensor, q: Tensor, share: float) -> Tensor:
    """KL of P to share P + (1 - share) Q, from log-probabilities.

    The mixture is taken relative to P, log(share + (1 - share) Q / P): exact where P and Q are close, finite where they
    are not.
    """
    require(0 <= share <= 1, f"the weight of a mixture must lie in [0, 1], but got {share}")
    if share in (0, 1):
        return kl_of_logs(p, p if share else q)
    ratio = torch.logaddexp(p.new_tensor(math.log(share)), q - p + math.log1p(-share))
    return -(p.exp() * ratio).sum(-1)
