"""How near a student is to its teacher and to the data, row by row, with intervals.

A row (a conversation, a document) is the unit that is drawn anew by the bootstrap: tokens of one row are not
independent, and an interval over tokens would be far too narrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.signals import Source
from limbeck.losses.divergence import cross_entropy, forward_kl

MEASURES = {
    "nll": "negative log-likelihood of the data, nats per token",
    "kl": "KL(teacher || student), nats per token",
    "top1": "share of tokens at which both models put the same one first",
}
POSITIONS = 512  # whose logits are held at once


@dataclass(frozen=True)
class ByRow:
    """``tokens`` n: supervised tokens of each row; ``sums``: measure -> n, summed over them."""

    tokens: np.ndarray
    sums: dict[str, np.ndarray]

    def mean(self, name: str) -> float:
        """The mean of a measure over all tokens."""
        return float(self.sums[name].sum() / max(self.tokens.sum(), 1))


class Interval(NamedTuple):
    """An estimate and the ends of its bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2


@torch.no_grad()
def agreement(student: Source, teacher: Source | None, batches: Iterable[Batch]) -> ByRow:
    """The measures of ``MEASURES`` at ``batch["answer"]``; without a teacher the first alone. Models in eval mode.

    Logits are asked for a few hundred positions at a time, so that a vocabulary of 150,000 does not fill the memory.
    """
    tokens: list[Tensor] = []
    parts: list[dict[str, Tensor]] = []
    for batch in batches:
        ours, theirs = student(batch), None if teacher is None else teacher(batch)
        count = batch["answer"].sum(1)
        sums: dict[str, Tensor] = {}
        for where in _portions(batch["answer"]):
            rows, logits = where.nonzero()[:, 0], ours.logits_at(where)
            values = {"nll": cross_entropy(logits, batch["targets"][where])}
            if theirs is not None:
                said = theirs.logits_at(where)
                values |= {"kl": forward_kl(logits, said), "top1": logits.argmax(-1) == said.argmax(-1)}
            for name, value in values.items():
                total = sums.setdefault(name, torch.zeros(len(count), dtype=torch.float64, device=count.device))
                total.index_add_(0, rows, value.to(total.dtype))
        tokens.append(count.cpu())
        parts.append({name: value.cpu() for name, value in sums.items()})
    require(
        tokens and sum(int(count.sum()) for count in tokens), "there is nothing to measure on; give supervised rows"
    )
    names = next(part for part in parts if part)
    joined = {
        name: torch.cat(
            [part.get(name, torch.zeros(len(count))) for part, count in zip(parts, tokens, strict=True)]
        ).numpy()
        for name in names
    }
    return ByRow(torch.cat(tokens).numpy(), joined)


def interval(rows: ByRow, name: str, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean of a measure per token and its percentile bootstrap interval over rows (Efron 1979)."""
    return _ends(rows.mean(name), _drawn(rows.sums[name], rows.tokens, draws, seed), level)


def difference(one: ByRow, other: ByRow, name: str, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """``one`` minus ``other`` on the same rows, which are drawn together: narrower than two intervals side by side."""
    require(np.array_equal(one.tokens, other.tokens), "a paired difference needs both models on the same rows")
    drawn = _drawn(one.sums[name] - other.sums[name], one.tokens, draws, seed)
    return _ends(one.mean(name) - other.mean(name), drawn, level)


def _portions(where: Tensor) -> Iterator[Tensor]:
    """``where`` b t in masks of at most ``POSITIONS`` true entries each, row by row."""
    flat = where.flatten().nonzero()[:, 0]
    for part in flat.split(POSITIONS):
        chosen = torch.zeros(where.numel(), dtype=torch.bool, device=where.device)
        chosen[part] = True
        yield chosen.view(where.shape)


def _drawn(sums: np.ndarray, tokens: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """The mean per token of ``draws`` sets of as many rows, drawn with replacement."""
    chosen = np.random.default_rng(seed).integers(len(tokens), size=(draws, len(tokens)))
    return sums[chosen].sum(1) / np.maximum(tokens[chosen].sum(1), 1)


def _ends(mean: float, drawn: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))
