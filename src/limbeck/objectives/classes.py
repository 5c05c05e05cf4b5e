"""Objectives of classifiers on rows of which some have a class."""

from __future__ import annotations

import torch

from limbeck.core.batch import Batch
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective
from limbeck.core.terms import Clock, Terms, per
from limbeck.losses.divergence import cross_entropy
from limbeck.objectives.named import named, unit
from limbeck.objectives.tokens import check_targets, logits_on


def classes(on: str = "labelled") -> Objective:
    """Cross-entropy of ``batch["labels"]`` over the rows where ``batch[on]`` b is true. Term: ``hard``."""

    @named("classes", on=on)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        known = unit(batch, on)
        logits, targets = logits_on(student, batch, "row")[known], batch["labels"][known]
        check_targets(targets, logits.shape[-1], on)
        return per(on, cross_entropy(logits, targets), "hard")

    return objective


def verdicts(on: str = "labelled") -> Objective:
    """What is measured, never trained: accuracy of both where ``batch[on]``, and how often the two agree."""

    @named("verdicts", on=on)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        known = unit(batch, on)
        ours, theirs = (logits_on(side, batch, "row").argmax(-1) for side in (student, teacher))
        truth = batch["labels"]
        terms = per(on, (ours == truth)[known], "accuracy") | per(on, (theirs == truth)[known], "teacher_accuracy")
        return Terms(terms | per("row", torch.eq(ours, theirs), "agreement"))

    return objective
