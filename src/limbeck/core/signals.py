"""What a source says about a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError


class Lazy(Protocol):
    """Logits that are not computed yet.

    One that may be asked for some of the positions at a time, again and again, says so by a true attribute
    ``by_chunk``: a loss then need not hold all of its logits, but takes them for a constant.
    """

    def at(self, positions: Tensor | None = None) -> Tensor:
        """Logits n v at the true entries of ``positions`` b t (row-major), or b t v for all of them."""


class Readout(NamedTuple):
    """The usual ``Lazy``: ``logits = softcap(scale * (hidden @ weight.T + bias))``.

    ``hidden`` b t d, ``weight`` v d, ``bias`` v or None. Whoever needs logits asks for them at the positions that count
    (``at``), so nobody materialises b t v; the losses of ``losses.fused`` take the states at these positions instead.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def at(self, positions: Tensor | None = None) -> Tensor:
        """Logits n v at the true entries of ``positions`` b t (row-major), or b t v for all of them."""
        hidden = chosen(self.hidden, positions).to(self.weight.dtype)  # autocast may have left it in another one
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def chosen(values: Tensor, positions: Tensor | None) -> Tensor:
    """``values`` b t ... at the true entries of ``positions`` b t as n ... (row-major), or all of them."""
    if positions is None:
        return values
    if positions.shape != values.shape[:2]:
        raise LimbeckError(
            f"positions {tuple(positions.shape)} are chosen from a signal of shape {tuple(values.shape)}; "
            "the mask and the signal must have the same rows and positions"
        )
    return values[positions]


@dataclass(frozen=True)
class Signals:
    """Numbers about a batch. Absent stays absent: nobody fills it in behind your back.

    ``logits`` b t v (tokens) or b c (classes); ``readout`` stands in for token logits not yet computed;
    ``hidden`` and ``qkv`` hold the layers that were asked for, by layer number (1 = first block, 0 = embeddings);
    q, k and v are b h t d with each one's own number of heads; ``pooled`` b d; ``exits`` one Signals per exit;
    ``router`` per-layer expert logits; ``members`` the single voices behind an ensemble; ``loss`` a scalar the model
    computed itself; ``own`` what a teacher with another tokenizer says at all places of its own cut of the text.
    """

    logits: Tensor | None = None
    readout: Lazy | None = None
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    qkv: Mapping[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    pooled: Tensor | None = None
    exits: tuple[Signals, ...] = ()
    members: tuple[Signals, ...] = ()
    router: tuple[Tensor, ...] = ()
    loss: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    own: Signals | None = None

    def present(self) -> list[str]:
        """Names of the signals that are there."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return [name for name, value in values if isinstance(value, Tensor) or value]

    def need(self, name: str) -> Any:
        """The signal ``name``, or an error that says who should have recorded it."""
        value = getattr(self, name)
        if isinstance(value, Tensor) or value:
            return value
        raise LimbeckError(
            f"the objective needs the signal {name!r}, but the source gave {self.present() or 'nothing'}; "
            f"ask the source to record it, for instance model_source(model, {name}=...)"
        )

    def logits_at(self, positions: Tensor | None = None) -> Tensor:
        """Logits at the true entries of ``positions`` b t as n v, or all of them, from ``logits`` or ``readout``."""
        if self.logits is not None:
            return chosen(self.logits, positions)
        if self.readout is not None:
            return self.readout.at(positions)
        return self.need("logits")


Source = Callable[[Batch], Signals]


def innermost(source: Source) -> Any:
    """What a source asks in the end, through whatever was put around it."""
    while not hasattr(source, "model") and hasattr(source, "source"):
        source = source.source
    return source


def model_behind(source: Source) -> Any:
    """The model that a source asks, through whatever was put around it; None if there is none."""
    return getattr(innermost(source), "model", None)
