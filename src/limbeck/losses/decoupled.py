"""Divergences that weigh parts of the vocabulary apart: head against tail, target against rest.

Conventions as in ``divergence``: logits ``... v`` in, nats per item ``...`` out, 0 for equal inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.core.check import require
from limbeck.losses.divergence import kl_of_logs, log_pair, upcast


def adaptive_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, threshold: float = 0.5) -> Tensor:
    """w KL(P || Q) + (1 - w) KL(Q || P), where w is the head's share of sum_v abs(P - Q) (AKL, 2404.02657).

    The tail are the teacher's least likely tokens whose cumulative mass stays below ``threshold``, the head all others;
    w is a constant for the gradient. (TAID's released baseline applies the head mask of the sorted order to unsorted
    gaps.)
    """
    q, p = log_pair(student, teacher, temperature)
    head = _head_share(q.detach().exp(), p.detach().exp(), threshold)
    return head * kl_of_logs(p, q) + (1 - head) * kl_of_logs(q, p)


def _head_share(q: Tensor, p: Tensor, threshold: float) -> Tensor:
    """Share of the gap abs(p - q) that lies on the head of ``p``; 1/2 where there is no gap."""
    ascending, order = p.sort(-1)
    gaps = (p - q).abs()
    in_head = (ascending.cumsum(-1) >= threshold).to(gaps.dtype)
    head, whole = (gaps.gather(-1, order) * in_head).sum(-1), gaps.sum(-1)
    return torch.where(whole > 0, head / whole.clamp(min=torch.finfo(gaps.dtype).tiny), 0.5)


def decoupled_kl(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 1.0, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Decoupled knowledge distillation, alpha TCKD + beta NCKD (DKD, 2203.08679), without the factor T**2.

    TCKD is the KL of (target, rest), NCKD the KL among the non-target entries alone. ``targets`` ... holds the true
    entry; with beta = 1 - P(target) and alpha = 1 the sum is the plain forward KL.
    """
    require(student.shape[-1] > 2, "decoupled_kl needs at least three candidates: a target and two others")
    require(
        targets.shape == student.shape[:-1],
        f"decoupled_kl: logits {tuple(student.shape)} need targets of shape {tuple(student.shape[:-1])}, "
        f"but got {tuple(targets.shape)}",
    )
    q, p = log_pair(student, teacher, temperature)
    index = targets.unsqueeze(-1)
    binary = kl_of_logs(_target_and_rest(p, index), _target_and_rest(q, index))
    others = kl_of_logs(*log_pair(_without(teacher, index), _without(student, index), temperature))
    return alpha * binary + beta * others


def _target_and_rest(log_p: Tensor, index: Tensor) -> Tensor:
    """log of (P(target), 1 - P(target)), the rest summed in log space."""
    rest = log_p.scatter(-1, index, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_p.gather(-1, index), rest], -1)


def _without(logits: Tensor, index: Tensor) -> Tensor:
    """The logits with the target ruled out."""
    return upcast(logits).scatter(-1, index, -math.inf)
