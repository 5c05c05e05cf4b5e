"""What a step hands to ``fit``: raw sums, their unit and their weight, kept apart.

A mean is not additive, a sum is. Keeping the sum and the name of what it is summed over lets ``fit`` divide by the
count of the whole optimizer step, over all micro-batches and ranks, so that 1, 2 or 8 micro-batches give the same
gradient, also when terms average over different positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.core.batch import Batch, rows
from limbeck.core.check import LimbeckError


@dataclass(frozen=True)
class Clock:
    """Where training stands: ``step`` of ``steps`` optimizer steps (0-based: the number already done)."""

    step: int
    steps: int

    @property
    def fraction(self) -> float:
        """Share of the steps already done, in [0, 1]."""
        return self.step / max(self.steps, 1)


Weight = float | Callable[[Clock], float]


def weight_at(weight: Weight, clock: Clock) -> float:
    """A number for a weight that may be a schedule."""
    return float(weight(clock)) if callable(weight) else float(weight)


class Term(NamedTuple):
    """A raw sum (scalar tensor), the unit it is averaged over, and its weight in the total."""

    sum: Tensor
    unit: str
    weight: float = 1.0


class Terms(dict[str, Term]):
    """Named terms. Units: the name of a boolean mask in the batch, ``"row"`` or ``"batch"``."""

    def total(self, counts: Mapping[str, float]) -> Tensor:
        """The loss: weighted sum of each term's sum over its unit's count (a unit that never occurs gives 0)."""
        parts = [term.weight * term.sum / max(counts[term.unit], 1) for term in self.values()]
        if not parts:
            raise LimbeckError("the step returned no terms; a step must return at least one")
        return torch.stack([part.float() for part in parts]).sum()

    def units(self) -> set[str]:
        """The units that occur."""
        return {term.unit for term in self.values()}


def count(batch: Batch, unit: str) -> int:
    """How many of ``unit`` the batch holds: true entries of a mask, rows, or 1 for ``"batch"``."""
    if unit == "row":
        return rows(batch)
    if unit == "batch":
        return 1
    if unit not in batch:
        raise LimbeckError(f"a term is averaged over {unit!r}, but the batch holds only {sorted(batch)}")
    return int(batch[unit].sum())


def per(unit: str, values: Tensor, name: str = "loss", weight: float = 1.0) -> Terms:
    """One term from per-item values: ``values`` of any shape is summed, to be averaged over ``unit``."""
    return Terms({name: Term(values.float().sum(), unit, weight)})
