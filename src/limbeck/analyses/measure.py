"""What a step says about rows that nobody trains on."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.stage import Step
from limbeck.core.terms import Clock, count


@torch.no_grad()
def measure(step: Step, batches: Iterable[Batch]) -> dict[str, float]:
    """The mean of each term of ``step`` over all ``batches``, before weights; models are to be in eval mode.

    A term is averaged over its unit in all batches together, as ``fit`` does in one optimizer step.
    """
    sums: dict[str, float] = {}
    items: dict[str, int] = {}
    for batch in batches:
        for name, term in step(batch, Clock(0, 1)).items():
            sums[name] = sums.get(name, 0.0) + float(term.sum)
            items[name] = items.get(name, 0) + count(batch, term.unit)
    require(sums, "measure: there is nothing to measure on; give at least one batch")
    return {name: total / max(items[name], 1) for name, total in sums.items()}
