"""A stream, shared out between processes, started again at its end, and continued where it stood."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError
from limbeck.core.stage import Stateful


class Feed:
    """Draws ``world * accumulate`` consecutive batches per optimizer step and keeps every ``world``-th from ``rank``.

    Every process walks the whole stream, so the position means the same everywhere, and N processes see together what
    one process with N times the accumulation sees.
    """

    def __init__(self, stream: Iterable[Batch], accumulate: int = 1, rank: int = 0, world: int = 1) -> None:
        self.stream, self.rank, self.world = stream, rank, world
        self.per_step = accumulate * world
        self.drawn = 0
        self._batches: Iterator[Batch] | None = None

    def take(self) -> list[Batch]:
        """The micro-batches of this process for the next optimizer step."""
        return [batch for index, batch in enumerate(self._draw(self.per_step)) if index % self.world == self.rank]

    def _draw(self, number: int) -> Iterator[Batch]:
        while number:
            first_of_pass = self._batches is None
            batches = self._batches = iter(self.stream) if self._batches is None else self._batches
            for batch in islice(batches, number):
                number, first_of_pass = number - 1, False
                self.drawn += 1
                yield batch
            if number:
                self._batches = None
                if first_of_pass:
                    raise LimbeckError(
                        f"the stream gave no batch after {self.drawn} in all; it is empty, or an iterator that ends "
                        "and cannot be started again: pass a list or an object whose __iter__ starts anew"
                    )

    def state_dict(self) -> dict[str, Any]:
        """How many batches were drawn and, if the stream can say it, where the stream stands."""
        state: dict[str, Any] = {"drawn": self.drawn}
        if isinstance(self.stream, Stateful):
            state["stream"] = self.stream.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue: by the stream's own memory if it has one, else by drawing and dropping what was drawn before."""
        self._batches = None
        if isinstance(self.stream, Stateful):
            self.stream.load_state_dict(state["stream"])
            self.drawn = state["drawn"]
            return
        self.drawn = 0
        for _ in self._draw(state["drawn"]):
            pass
