"""Objectives on whole texts: every text counts alike, however long it is."""

from __future__ import annotations

import torch

from limbeck.core.batch import Batch
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective
from limbeck.core.terms import Clock, Terms, per
from limbeck.losses.divergence import forward_kl
from limbeck.objectives.named import named, unit
from limbeck.objectives.tokens import Comparison, Divergence, compare


def per_text(*divergences: Divergence, on: str = "answer", name: str = "distance") -> Objective:
    """A divergence (the mean of several; by default forward KL) averaged over each text's tokens, then over texts.

    It is the loss and the metric of teacher hacking (2502.02671). A text without tokens counts as 0. Term: ``name``,
    averaged over rows.
    """
    divergences = divergences or (forward_kl,)
    asked = [Comparison(name, on, one, factor=1 / len(divergences)) for one in divergences]

    @named("per_text", *divergences, on=on)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        where = unit(batch, on)
        values = torch.stack(compare(asked, student, teacher, batch)).sum(0)
        row = where.nonzero()[:, 0]
        sums = torch.zeros(len(where), dtype=values.dtype, device=values.device).index_add(0, row, values)
        return per("row", sums / where.sum(1).clamp(min=1), name)

    return objective
