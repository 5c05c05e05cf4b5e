"""Several teachers as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError, require
from limbeck.core.signals import Lazy, Readout, Signals, Source
from limbeck.losses.divergence import upcast

TOLERANCE = 1e-4
"""How far the weights may miss a sum of 1."""


def mean_source(
    sources: Sequence[Source], weights: Sequence[float] | None = None, temperature: float = 1.0
) -> MeanSource:
    """The mean of several teachers' *probabilities*, sum_k w_k softmax(z_k / temperature), for tokens or classes.

    Its logits are temperature * log(mean), so that ``soft(temperature=...)`` with the same temperature compares with
    exactly this mean. They are computed where somebody asks for them, teacher by teacher, and only one sum stands in
    memory. The single teachers are kept in ``Signals.members`` (see ``objectives.weighted.over_members``).

    All teachers read the same batch, so they must share a tokenizer. Raises ``LimbeckError`` for no sources, weights
    that do not belong to them or do not add up to 1, and vocabularies of different sizes.
    """
    count = len(sources)
    require(count > 0, "mean_source: needs at least one source, but got none")
    shares = tuple(weights) if weights is not None else (1 / count,) * count
    require(len(shares) == count, f"mean_source: {len(shares)} weights for {count} sources; give one each")
    require(
        all(share >= 0 for share in shares) and abs(sum(shares) - 1) <= TOLERANCE,
        f"mean_source: weights must be at least 0 and add up to 1, but are {list(shares)}",
    )
    require(temperature > 0, f"mean_source: the temperature must be positive, but is {temperature}")
    return MeanSource(tuple(sources), shares, temperature)


@dataclass(frozen=True)
class MeanSource:
    """See ``mean_source``."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    temperature: float = 1.0

    def __call__(self, batch: Batch) -> Signals:
        """All members' signals, and their mean as logits yet to be computed."""
        members = tuple(source(batch) for source in self.sources)
        return Signals(readout=Mean(members, self.weights, self.temperature), members=members)


@dataclass(frozen=True)
class Mean:
    """Logits of a mean of probabilities, not computed yet (a ``core.signals.Lazy``)."""

    members: tuple[Signals, ...] = field(repr=False)
    weights: tuple[float, ...]
    temperature: float

    @property
    def by_chunk(self) -> bool:
        """Whether every member may be asked for a few positions at a time."""
        return all(m.logits is not None or _in_chunks(m.readout) for m in self.members)

    def at(self, positions: Tensor | None = None) -> Tensor:
        """temperature * log(sum_k w_k softmax(z_k / temperature)) at the true entries of ``positions``, all if None."""
        total: Tensor | None = None
        for member, weight in zip(self.members, self.weights, strict=True):
            if weight > 0:
                logits = upcast(member.logits_at(positions)) / self.temperature
                voice = logits.log_softmax(-1) + math.log(weight)
                total = voice if total is None else _log_sum(total, voice)
        assert total is not None  # the weights add up to 1
        return total * self.temperature


def _in_chunks(said: Lazy | None) -> bool:
    return isinstance(said, Readout) or getattr(said, "by_chunk", False)


def _log_sum(one: Tensor, other: Tensor) -> Tensor:
    """log(exp(one) + exp(other)); -inf where both are."""
    if one.shape != other.shape:
        raise LimbeckError(
            f"mean_source: teachers give logits of shape {tuple(one.shape)} and {tuple(other.shape)}; averaging their "
            "probabilities needs one tokenizer and one set of classes for all"
        )
    return torch.logaddexp(one, other)
