"""Streams made of streams: two side by side, or one with every batch passed through a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.feed import Feed


class Beside:
    """Batches of ``stream``, each with the tensors of the next batch of ``other`` under ``prefix`` + their names.

    Endless and resumable. Give both the same number of rows, so that a batch can be cut along its rows.
    """

    def __init__(self, stream: Iterable[Batch], other: Iterable[Batch], prefix: str = "text_") -> None:
        require(prefix, "Beside: the other stream's tensors need a prefix to be told apart")
        self.prefix, self._feeds = prefix, (Feed(stream), Feed(other))

    def __iter__(self) -> Iterator[Batch]:
        while True:
            (batch,), (other,) = (feed.take() for feed in self._feeds)
            yield batch | {self.prefix + name: value for name, value in other.items()}

    def state_dict(self) -> dict[str, Any]:
        """Where both streams stand."""
        return {"streams": [feed.state_dict() for feed in self._feeds]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue both."""
        for feed, saved in zip(self._feeds, state["streams"], strict=True):
            feed.load_state_dict(saved)


def carried(batch: Batch, prefix: str = "text_") -> Batch:
    """The batch that was carried along under ``prefix``."""
    return {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}


class Mapped:
    """``function`` of every batch of ``stream``; endless and resumable, if the function depends on the batch alone."""

    def __init__(self, stream: Iterable[Batch], function: Callable[[Batch], Batch]) -> None:
        self.function, self._feed = function, Feed(stream)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            (batch,) = self._feed.take()
            yield self.function(batch)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return self._feed.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue."""
        self._feed.load_state_dict(state)
