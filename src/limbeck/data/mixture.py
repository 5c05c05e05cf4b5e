"""Several streams as one: each item, or each row of a batch, comes from a stream drawn at random."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.core.batch import IGNORE, Batch
from limbeck.core.check import LimbeckError, require
from limbeck.data.stream import Batches


def tempered(sizes: Mapping[str, float], temperature: float = 1.0) -> dict[str, float]:
    """Shares proportional to ``size ** (1 / temperature)`` (mT5, arXiv 2010.11934, 3.1: alpha = 1 / temperature).

    1 keeps the sizes' proportions; higher values even them out; infinity gives equal shares.
    """
    require(temperature > 0, f"the temperature must be above 0, but is {temperature}")
    return {name: size ** (1 / temperature) for name, size in sizes.items()}


class Mixture:
    """An endless, resumable mixture of named streams.

    Draw ``i`` depends only on ``(seed, i)`` and the weights at that moment. ``weights`` (any positive scale; default:
    equal) may be set while running and acts on the next draw. A stream that ends is started again. The state holds
    position, weights and the streams' own states; a stream without ``state_dict`` is moved forward item by item.
    """

    def __init__(
        self, streams: Mapping[str, Iterable[Any]], weights: Mapping[str, float] | None = None, seed: int = 0
    ) -> None:
        require(streams, "the mixture has no streams; give at least one")
        self.streams, self.seed, self.position = dict(streams), seed, 0
        self.drawn = dict.fromkeys(self.streams, 0)
        self.weights = weights or dict.fromkeys(self.streams, 1.0)
        self._open: dict[str, Iterator[Any]] = {}

    @property
    def weights(self) -> dict[str, float]:
        """The streams' shares, which sum to 1."""
        return dict(self._weights)

    @weights.setter
    def weights(self, weights: Mapping[str, float]) -> None:
        require(
            set(weights) == set(self.streams),
            f"the weights name {sorted(weights)}, but the mixture's streams are {sorted(self.streams)}",
        )
        values = np.array([float(weights[name]) for name in self.streams])
        good = np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0
        require(good, f"weights must be finite, at least 0 and not all 0, but got {dict(weights)}")
        self._weights = dict(zip(self.streams, (values / values.sum()).tolist(), strict=True))

    def __iter__(self) -> Iterator[Any]:
        while True:
            name = self._draw(self.position)
            self.position += 1
            self.drawn[name] += 1
            yield self._next(name)

    def state_dict(self) -> dict[str, Any]:
        """Position, weights, how often each stream was drawn, and the states of those that have one."""
        states = {name: s.state_dict() for name, s in self.streams.items() if hasattr(s, "state_dict")}
        return {"position": self.position, "weights": self.weights, "drawn": dict(self.drawn), "streams": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        require(
            set(state["drawn"]) == set(self.streams),
            f"the saved mixture had the streams {sorted(state['drawn'])}, but this one has {sorted(self.streams)}",
        )
        self.position, self.weights, self.drawn = int(state["position"]), state["weights"], dict(state["drawn"])
        self._open = {}
        for name, stream in self.streams.items():
            if name in state["streams"]:
                stream.load_state_dict(state["streams"][name])  # type: ignore[attr-defined]
            else:
                for _ in range(self.drawn[name]):
                    self._next(name)

    def __repr__(self) -> str:
        shares = ", ".join(f"{name} {share:.3g}" for name, share in self._weights.items())
        return f"Mixture({shares}; seed={self.seed}, position={self.position})"

    def _draw(self, position: int) -> str:
        ends = np.cumsum(list(self._weights.values()))
        point = np.random.default_rng([self.seed, position]).random() * ends[-1]
        return list(self.streams)[int(np.searchsorted(ends, point, side="right"))]

    def _next(self, name: str) -> Any:
        for _ in range(2):
            if name not in self._open:
                self._open[name] = iter(self.streams[name])
            try:
                return next(self._open[name])
            except StopIteration:
                del self._open[name]
        raise LimbeckError(f"the stream {name!r} of the mixture gave nothing when it was started again")


class Blend:
    """Batches of ``batch`` rows, each row drawn from one of ``streams`` on its own: a ``Mixture`` of rows.

    A whole batch of one domain pulls the weights to and fro; rows of all in one batch do not. The streams may hold
    different kinds of rows (windows, pairs) as long as their batches have the same tensors. ``weights`` and ``drawn``,
    which counts rows, are those of ``mixture``.
    """

    def __init__(
        self, streams: Mapping[str, Batches], batch: int, weights: Mapping[str, float] | None = None, seed: int = 0
    ) -> None:
        require(batch >= 1, f"a batch must hold at least one row, but batch is {batch}")
        rows = {name: Batches(s.rows, s.collate, 1, s.seed, s.shuffle, s.draws) for name, s in streams.items()}
        self.mixture, self.batch = Mixture(rows, weights, seed), batch

    @property
    def weights(self) -> dict[str, float]:
        """The streams' shares of the rows, which sum to 1; what is set acts on the next batch."""
        return self.mixture.weights

    @weights.setter
    def weights(self, weights: Mapping[str, float]) -> None:
        self.mixture.weights = dict(weights)

    @property
    def drawn(self) -> dict[str, int]:
        """How many rows each stream has given."""
        return dict(self.mixture.drawn)

    def __iter__(self) -> Iterator[Batch]:
        rows = iter(self.mixture)
        while True:
            yield joined(list(islice(rows, self.batch)))

    def state_dict(self) -> dict[str, Any]:
        """That of the mixture."""
        return self.mixture.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.mixture.load_state_dict(state)

    def __repr__(self) -> str:
        return f"Blend({self.mixture!r}, batch={self.batch})"


def joined(batches: Sequence[Batch]) -> Batch:
    """The rows of several batches as one, padded on the right to the longest: targets with ``IGNORE``, all else with 0.

    Raises where the batches do not hold the same tensors.
    """
    names = list(batches[0])
    for batch in batches:
        require(
            set(batch) == set(names),
            f"rows of {sorted(names)} and of {sorted(batch)} cannot share a batch; write all domains in one way",
        )
    return {name: _joined([b[name] for b in batches], IGNORE if name == "targets" else 0) for name in names}


def _joined(values: list[Tensor], fill: int) -> Tensor:
    width = max(value.shape[1] if value.dim() > 1 else 0 for value in values)
    sizes = [width - value.shape[1] if value.dim() > 1 else 0 for value in values]
    return torch.cat(
        [
            torch.nn.functional.pad(v, (0, more), value=fill) if more else v
            for v, more in zip(values, sizes, strict=True)
        ]
    )
