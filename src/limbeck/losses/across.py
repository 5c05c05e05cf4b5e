"""Divergences between models that do not cut text alike.

Conventions as in ``divergence``: P is the teacher, Q the student; nats per item, float32 inside, 0 for equal inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.core.check import LimbeckError, require
from limbeck.losses.divergence import kl_of_logs, log_probs, upcast


def uld(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Universal Logit Distillation: sum over ranks of abs(P sorted - Q sorted), in [0, 2] (2402.12030, section 3.2).

    Logits ... v and ... w of vocabularies of any sizes; the smaller one is filled up with zeros. That is a Wasserstein
    distance with all tokens equally far apart: it compares how sure both are, not what of.
    """
    if student.shape[:-1] != teacher.shape[:-1]:
        raise LimbeckError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have the same places; only their "
            "vocabularies may differ in size"
        )
    require(temperature > 0, f"the temperature must be positive, but got {temperature}")
    q, p = (log_probs(logits, temperature).exp().sort(-1, descending=True).values for logits in (student, teacher))
    size = max(q.shape[-1], p.shape[-1])
    q, p = (torch.nn.functional.pad(values, (0, size - values.shape[-1])) for values in (q, p))
    return (p - q).abs().sum(-1)


def binary_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL between "this span" and "anything else": of (p, 1 - p) from (q, 1 - q), p and q to the power 1 / temperature.

    ``student`` and ``teacher`` ... are log-probabilities of spans, such as sums over a span's tokens (Approximate
    Likelihood Matching, 2503.20083). A high temperature weighs improbable spans like probable ones.
    """
    _check(student, teacher, temperature)
    q, p = (torch.stack(_yes_and_no(upcast(value) / temperature), -1) for value in (student, teacher))
    return kl_of_logs(p, q)


def squared_gap(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The squared difference of log-probabilities ... of spans, each divided by ``temperature``; nats squared."""
    _check(student, teacher, temperature)
    return ((upcast(student) - upcast(teacher)) / temperature).square()


def _yes_and_no(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p), p at most 1 - epsilon so that the second is finite; each computed where it is exact."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    near_one = log_p > -math.log(2)
    no = torch.where(near_one, torch.log(-torch.expm1(log_p)), torch.log1p(-torch.exp(log_p.clamp(max=-math.log(2)))))
    return log_p, no


def _check(student: Tensor, teacher: Tensor, temperature: float) -> None:
    if student.shape != teacher.shape:
        raise LimbeckError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must hold the same spans"
        )
    require(temperature > 0, f"the temperature must be positive, but got {temperature}")
