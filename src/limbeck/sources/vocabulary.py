"""A source with a large vocabulary, heard through a smaller one that was cut from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError, require
from limbeck.core.signals import Lazy, Readout, Signals, Source


def kept(source: Source, keep: Sequence[int]) -> Source:
    """What ``source`` says about the tokens ``keep`` (ids) alone, in that order: a softmax over them is renormalised.

    Logits that are not computed yet are computed for these tokens only.
    """
    require(len(keep) > 1, f"kept: a distribution needs at least two tokens, but got {len(keep)}")
    columns = torch.as_tensor(keep)

    def heard(batch: Batch) -> Signals:
        said = source(batch)
        if said.logits is not None:
            return replace(said, logits=said.logits[..., columns.to(said.logits.device)])
        return replace(said, readout=_columns(said.need("readout"), columns))

    return heard


def elsewhere(source: Source, prefix: str = "teacher_", on: str = "aligned") -> Source:
    """What ``source`` says about the same text cut into other tokens, at the places where both cuts agree.

    The batch holds that other cut as ``<prefix>ids`` b s and ``<prefix>mask`` b s, and its agreeing places as
    ``<prefix><on>`` b s: as many per row as ``batch[on]`` b t has, in the same order. The logits may be asked for at
    ``batch[on]`` only.
    """

    def heard(batch: Batch) -> Signals:
        for name in (f"{prefix}ids", f"{prefix}mask", f"{prefix}{on}"):
            require(name in batch, f"elsewhere: needs {name!r} in the batch, which holds only {sorted(batch)}")
        said = source({"ids": batch[f"{prefix}ids"], "mask": batch[f"{prefix}mask"]})
        return Signals(readout=_Elsewhere(said, batch[f"{prefix}{on}"], batch[on]))

    return heard


@dataclass(frozen=True)
class _Elsewhere:
    """Logits of another cut of the text, at the places that agree with ours."""

    said: Signals = field(repr=False)
    theirs: Tensor
    ours: Tensor

    def at(self, positions: Tensor | None = None) -> Tensor:
        """Logits n v at the agreeing places, which ``positions`` has to be."""
        if positions is None or not torch.equal(positions, self.ours):
            raise LimbeckError("logits of another cut of the text are known only at the places where both cuts agree")
        return self.said.logits_at(self.theirs)


@dataclass(frozen=True)
class _Columns:
    """Some columns of logits that are not computed yet."""

    said: Lazy = field(repr=False)
    columns: Tensor

    @property
    def by_chunk(self) -> bool:
        """Whether the whole vocabulary may be asked for a few positions at a time."""
        return getattr(self.said, "by_chunk", False)

    def at(self, positions: Tensor | None = None) -> Tensor:
        """Logits n k at the true entries of ``positions``, or all of them."""
        logits = self.said.at(positions)
        return logits[..., self.columns.to(logits.device)]


def _columns(said: Lazy, columns: Tensor) -> Lazy:
    if not isinstance(said, Readout):
        return _Columns(said, columns)
    columns = columns.to(said.weight.device)
    return said._replace(weight=said.weight[columns], bias=None if said.bias is None else said.bias[columns])
