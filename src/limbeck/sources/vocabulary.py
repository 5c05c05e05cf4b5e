"""A source heard through another vocabulary: some of its tokens, the same text in another cut, no padded rows."""

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


def padded(source: Source, size: int) -> Padded:
    """What ``source`` says about the first ``size`` ids: its output layer without the rows that no token has.

    Models of one family pad their output layers to different widths; cut to the tokenizer's size they are alike.
    """
    require(size > 1, f"padded: a distribution needs at least two tokens, but got {size}")
    return Padded(source, size)


@dataclass(frozen=True)
class Padded:
    """See ``padded``."""

    source: Source
    size: int

    def __call__(self, batch: Batch) -> Signals:
        """The source's signals with ``size`` logits."""
        said = self.source(batch)
        if said.logits is not None:
            self._check(said.logits.shape[-1])
            return replace(said, logits=said.logits[..., : self.size])
        return replace(said, readout=self._lazy(said.need("readout")))

    def _lazy(self, said: Lazy) -> Lazy:
        if not isinstance(said, Readout):
            return _Columns(said, torch.arange(self.size))
        self._check(len(said.weight))
        bias = None if said.bias is None else said.bias[: self.size]
        return said._replace(weight=said.weight[: self.size], bias=bias)

    def _check(self, have: int) -> None:
        require(have >= self.size, f"the model gives {have} logits, but its tokenizer has {self.size} tokens")


def elsewhere(source: Source, prefix: str = "teacher_", on: str = "aligned") -> Elsewhere:
    """What ``source`` says about the same text cut into other tokens, at the places where both cuts agree.

    The batch holds that other cut under names with ``prefix``: ``teacher_ids`` b s, ``teacher_mask`` b s and whatever
    else the source reads, and its agreeing places as ``teacher_<on>`` b s: as many per row as ``batch[on]`` b t has, in
    the same order (``data.crossed``). Logits may be asked for at ``batch[on]`` or at some of its true entries.
    ``Signals.own`` holds all that the source said about its own cut.
    """
    return Elsewhere(source, prefix, on)


@dataclass(frozen=True)
class Elsewhere:
    """See ``elsewhere``."""

    source: Source
    prefix: str = "teacher_"
    on: str = "aligned"

    def __call__(self, batch: Batch) -> Signals:
        """What the source says, to be asked for at places of our cut."""
        theirs = {name.removeprefix(self.prefix): batch[name] for name in batch if name.startswith(self.prefix)}
        for name in ("ids", "mask", self.on):
            require(
                name in theirs,
                f"elsewhere: needs {self.prefix + name!r} in the batch, which holds only {sorted(batch)}",
            )
        said = self.source(theirs)
        return Signals(readout=_Agreeing(said, batch[self.on], theirs[self.on]), own=said)


@dataclass(frozen=True)
class _Agreeing:
    """Logits of another cut of the text, at the places that agree with ours."""

    said: Signals = field(repr=False)
    ours: Tensor
    theirs: Tensor

    def at(self, positions: Tensor | None = None) -> Tensor:
        """Logits n v at the agreeing places that ``positions`` b t names, in its order."""
        if positions is None or positions.shape != self.ours.shape or (positions & ~self.ours).any():
            raise LimbeckError("logits of another cut of the text are known only at the places where both cuts agree")
        some = torch.zeros_like(self.theirs)
        some[self.theirs] = positions[self.ours]
        return self.said.logits_at(some)


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
