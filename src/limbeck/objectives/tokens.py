"""Objectives on what is predicted: next tokens, masked tokens, or the class of a row.

Where the student's logits are yet to be computed from states and an output layer (``Readout``), they never are: the
objective takes the fused form of its loss (``losses.fused``), which gives the same numbers. Everything else, such as a
divergence that has no closed form, or a teacher that is to learn, goes through the logits of the positions that count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.batch import IGNORE, Batch
from limbeck.core.check import require
from limbeck.core.signals import Readout, Signals, chosen
from limbeck.core.stage import Objective
from limbeck.core.terms import Clock, Terms, Weight, per, weight_at
from limbeck.losses.closed import closed_form
from limbeck.losses.divergence import cross_entropy, forward_kl, refuse_teacher, same_vocabulary
from limbeck.losses.fused import fused_parts
from limbeck.losses.heads import Head, Logits
from limbeck.losses.sweep import Part
from limbeck.objectives.named import Named, called, unit

Divergence = Callable[[Tensor, Tensor, float], Tensor]
"""Student logits ... v, teacher logits ... v, temperature -> one value per item ...; settings by ``partial``."""


def soft(
    divergence: Divergence = forward_kl, temperature: Weight = 1.0, on: str = "answer", rescale: bool = False
) -> Objective:
    """Student against teacher distribution, averaged over ``batch[on]``'s true entries or over rows (``on="row"``).

    Only those positions reach the output layer; row logits are b c. ``temperature`` divides both sides and may be a
    schedule; ``rescale`` multiplies by temperature**2, which keeps the gradient's size (Hinton et al. 2015,
    1503.02531).

    Refuses a teacher whose logits hold NaN or plus infinity, and vocabularies that differ in size. Term: ``soft``.
    """

    def ask(clock: Clock) -> Comparison:
        degrees = weight_at(temperature, clock)
        return Comparison("soft", on, divergence, degrees, degrees**2 if rescale else 1.0)

    return Comparing(ask, called("soft", divergence, temperature=temperature, on=on, rescale=rescale or None))


def hard(on: str = "answer") -> Objective:
    """Cross-entropy of ``batch["targets"]`` over ``batch[on]``'s true entries, or of ``batch["labels"]`` over rows.

    Refuses positions without a target and targets outside the vocabulary. Term: ``hard``.
    """
    return Comparing(lambda clock: Comparison("hard", on), called("hard", on=on))


@dataclass(frozen=True)
class Comparison:
    """What an objective on predictions asks for at one moment: a divergence, or the cross-entropy of the targets.

    Values are averaged over ``on`` and multiplied by ``factor``. ``weight`` is what somebody else multiplies by.
    """

    name: str
    on: str = "answer"
    divergence: Divergence | None = None
    temperature: float = 1.0
    factor: float = 1.0
    weight: float = 1.0


class Comparing(Named):
    """An objective that is one ``Comparison`` at a time, so that several can share what they compute."""

    def __init__(self, ask: Callable[[Clock], Comparison], text: str) -> None:
        super().__init__(self._terms, text)
        self.ask = ask

    def _terms(self, student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        asked = self.ask(clock)
        return per(asked.on, compare([asked], student, teacher, batch)[0], asked.name)


def compare(asked: Sequence[Comparison], student: Signals, teacher: Signals, batch: Batch) -> list[Tensor]:
    """The values of each comparison, n at the true entries of its mask or b for rows.

    Those over the same mask share one pass over the output layers.
    """
    values: dict[int, Tensor] = {}
    for on in dict.fromkeys(one.on for one in asked):
        group = {index: one for index, one in enumerate(asked) if one.on == on}
        heads = _heads(group.values(), student, teacher, batch, on)
        together = {index: one for index, one in group.items() if heads and _closed(one)}
        if heads and together:
            parts = [_part(one, batch, heads[0]) for one in together.values()]
            values |= zip(together, fused_parts(*heads, parts), strict=True)
        values |= {i: _by_logits(one, student, teacher, batch) for i, one in group.items() if i not in together}
    return [values[index] * one.factor if one.factor != 1 else values[index] for index, one in enumerate(asked)]


def _closed(asked: Comparison) -> bool:
    return asked.divergence is None or closed_form(asked.divergence) is not None


def _part(asked: Comparison, batch: Batch, student: Head) -> Part:
    weight = asked.weight * asked.factor
    if asked.divergence is not None:
        return Part(asked.divergence, asked.temperature, weight=weight)
    targets = targets_on(batch, asked.on)
    check_targets(targets, student.weight.shape[0], asked.on)
    return Part(None, targets=targets, weight=weight)


def _by_logits(asked: Comparison, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
    ours = logits_on(student, batch, asked.on)
    if asked.divergence is None:
        targets = targets_on(batch, asked.on)
        check_targets(targets, ours.shape[-1], asked.on)
        return cross_entropy(ours, targets)
    theirs = logits_on(teacher, batch, asked.on)
    check_teacher(ours, theirs)
    return asked.divergence(ours, theirs, asked.temperature)


def _heads(
    asked: Iterable[Comparison], student: Signals, teacher: Signals, batch: Batch, on: str
) -> tuple[Head, Logits | None] | None:
    """Student and teacher for the fused form; None where only logits will do."""
    if on == "row" or student.logits is not None or not isinstance(student.readout, Readout):
        return None
    where = unit(batch, on)
    theirs = _teacher(teacher, where) if any(one.divergence is not None for one in asked) else None
    parts = theirs if isinstance(theirs, Head) else (theirs,)
    learns = any(part.requires_grad for part in parts if isinstance(part, Tensor))
    return None if learns and torch.is_grad_enabled() else (_head(student.readout, where), theirs)


def _head(readout: Readout, where: Tensor) -> Head:
    """Its output layer, and the states at the positions that count."""
    return Head(chosen(readout.hidden, where), *readout[1:])


def _teacher(teacher: Signals, where: Tensor) -> Logits:
    """Its output layer, its logits chunk by chunk where it can give them so, or its logits."""
    lazy = teacher.readout if teacher.logits is None else None
    if isinstance(lazy, Readout):
        return _head(lazy, where)
    if lazy is None or not getattr(lazy, "by_chunk", False):
        return teacher.logits_at(where)
    places = where.flatten().nonzero().squeeze(-1)

    def some(rows: slice) -> Tensor:
        positions = torch.zeros_like(where).flatten()
        positions[places[rows]] = True
        return lazy.at(positions.view_as(where))

    return some


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
    same_vocabulary(student.shape[-1], teacher.shape[-1])
    refuse_teacher(teacher)


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
