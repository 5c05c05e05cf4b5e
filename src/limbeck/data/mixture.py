"""Several streams as one: each item comes from a stream drawn at random."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from limbeck.core.check import LimbeckError, require


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
