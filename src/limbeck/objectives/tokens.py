"""Objectives on what is predicted: next tokens, masked tokens, or the class of a row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.core.batch import IGNORE, Batch
from limbeck.core.check import LimbeckError, require
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective
from limbeck.core.terms import Clock, Terms, Weight, per, weight_at
from limbeck.losses.divergence import cross_entropy, forward_kl
from limbeck.objectives.named import named, unit

Divergence = Callable[[Tensor, Tensor, float], Tensor]
"""Student logits ... v, teacher logits ... v, temperature -> one value per item ...; settings by ``partial``."""


def soft(
    divergence: Divergence = forward_kl, temperature: Weight = 1.0, on: str = "answer", rescale: bool = False
) -> Objective:
    """Student against teacher distribution, averaged over ``batch[on]``'s true entries or over rows (``on="row"``).

    Logits are computed at those positions only; row logits are b c. ``temperature`` divides both sides and may be a
    schedule; ``rescale`` multiplies by temperature**2, which keeps the gradient's size (Hinton et al. 2015,
    1503.02531).

    Refuses a teacher whose logits hold NaN or plus infinity, and vocabularies that differ in size. Term: ``soft``.
    """

    @named("soft", divergence, temperature=temperature, on=on, rescale=rescale or None)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        degrees = weight_at(temperature, clock)
        ours, theirs = logits_on(student, batch, on), logits_on(teacher, batch, on)
        check_teacher(ours, theirs)
        values = divergence(ours, theirs, degrees)
        return per(on, values * degrees**2 if rescale else values, "soft")

    return objective


def hard(on: str = "answer") -> Objective:
    """Cross-entropy of ``batch["targets"]`` over ``batch[on]``'s true entries, or of ``batch["labels"]`` over rows.

    Refuses positions without a target and targets outside the vocabulary. Term: ``hard``.
    """

    @named("hard", on=on)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        logits = logits_on(student, batch, on)
        targets = targets_on(batch, on)
        check_targets(targets, logits.shape[-1], on)
        return per(on, cross_entropy(logits, targets), "hard")

    return objective


def logits_on(signals: Signals, batch: Batch, on: str) -> Tensor:
    """Logits n v at the true entries of ``batch[on]``, or b c for rows."""
    if on != "row":
        return signals.logits_at(unit(batch, on))
    logits = signals.logits_at()
    require(logits.dim() == 2, f"on='row' needs logits of shape rows x classes, but got {tuple(logits.shape)}")
    return logits


def targets_on(batch: Batch, on: str) -> Tensor:
    """Targets n at the true entries of ``batch[on]``, or the class of each row, b."""
    name = "labels" if on == "row" else "targets"
    require(name in batch, f"hard(on={on!r}) needs {name!r} in the batch, which holds only {sorted(batch)}")
    targets = batch[name] if on == "row" else batch[name][unit(batch, on)]
    require(
        not targets.is_floating_point(), f"hard(on={on!r}): {name!r} must be whole numbers, but are {targets.dtype}"
    )
    return targets


def check_teacher(student: Tensor, teacher: Tensor) -> None:
    """Refuse teacher logits ... v of another vocabulary, with NaN or +inf, or with nothing that may be said."""
    ours, theirs = student.shape[-1], teacher.shape[-1]
    if ours != theirs:
        raise LimbeckError(
            f"the student's vocabulary has {ours} entries and the teacher's {theirs}; check that both use the same "
            "tokenizer, and if only an output layer is padded, cut it to the tokenizer's size (resize_token_embeddings)"
        )
    if not torch.isfinite(teacher.amax(-1)).all():  # the maximum shows NaN, +inf, and rows of -inf alone
        raise LimbeckError(
            "the teacher's logits hold NaN or infinity; check its weights and its precision (float16 overflows where "
            "bfloat16 does not)"
        )


def check_targets(targets: Tensor, size: int, on: str) -> None:
    """Refuse targets that no logit belongs to."""
    if targets.numel() == 0:
        return
    low, high = int(targets.min()), int(targets.max())
    require(
        low != IGNORE,
        f"hard(on={on!r}) meets positions without a target; average over 'answer', which has one",
    )
    require(
        low >= 0 and high < size,
        f"hard(on={on!r}): targets run from {low} to {high}, but the model gives {size} logits; check that the data "
        "were encoded by this model's tokenizer, or that its classes are numbered from 0",
    )
