"""Policies: whether the next batch holds the data's text, text the student writes now, or what it wrote before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from limbeck.core.check import one_of, require
from limbeck.core.terms import Clock

Act = Literal["data", "written", "replayed"]
REPLAYS: dict[str, Callable[[float], float]] = {
    "decreasing": lambda fraction: 1 - fraction,
    "constant": lambda fraction: 0.5,
    "increasing": lambda fraction: fraction,
}


class Policy(Protocol):
    """Whose text a batch holds."""

    capacity: int
    """How many rows of the student's text are kept to be replayed."""

    def choose(self, chance: float, kept: int) -> Act:
        """What to do where ``chance`` was drawn from [0, 1) and ``kept`` rows are there to be replayed."""

    def state_dict(self) -> dict[str, Any]:
        """The memory."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved memory."""


class Share:
    """The student writes with probability ``share``, batch by batch (GKD's lambda, 2306.13649, algorithm 1)."""

    capacity = 0

    def __init__(self, share: float) -> None:
        require(0 <= share <= 1, f"the share of text by the student must lie from 0 to 1, but is {share}")
        self.share = share

    def choose(self, chance: float, kept: int) -> Act:
        """Write, or take the data."""
        return "written" if chance < self.share else "data"

    def state_dict(self) -> dict[str, Any]:
        """The share, which a callback may have moved."""
        return {"share": self.share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue."""
        self.share = state["share"]


class Adaptive:
    """DistiLLM's adaptive off-policy text (2402.03898, section 3.2): more of it as soon as validation gets worse.

    ``share``, phi in the paper, is the probability of text by the student. It is mostly *replayed*: newly written are
    a part of it that shrinks as training goes on (``replay``: "decreasing", "constant" or "increasing" with the
    fraction of steps), and all of it while fewer than ``capacity`` rows are kept. ``validate()`` is the loss on
    held-out data, asked for before the first step and, as the policy is also a callback of the stage, after every
    ``period`` steps: once it is ``slack`` above the last reference, phi rises by ``rise`` and the loss becomes the
    reference. The reference never falls, as in the released code.
    """

    def __init__(
        self,
        validate: Callable[[], float],
        period: int,
        capacity: int = 1000,
        start: float = 0.0,
        rise: float = 0.1,
        slack: float = 0.1,
        replay: str = "decreasing",
    ) -> None:
        require(0 <= start <= 1 and 0 <= rise <= 1, f"shares must lie from 0 to 1, but are {start} and {rise}")
        require(capacity >= 1 and period >= 1, f"capacity and period must be at least 1, but are {capacity}, {period}")
        self.validate, self.period, self.capacity, self.rise, self.slack = validate, period, capacity, rise, slack
        self.replay = REPLAYS[one_of(replay, REPLAYS, "Adaptive: replay")]
        self.share, self.fraction = start, 0.0
        self.reference: float | None = None

    def __call__(self, logs: Mapping[str, float], clock: Clock) -> None:
        """After an optimizer step: where training stands and, every ``period`` steps, validate."""
        self.fraction = min(1.0, (clock.step + 1) / clock.steps)  # of the step to come, as the released code has it
        if clock.step % self.period == 0:
            self.hear(self.validate())

    def hear(self, loss: float) -> None:
        """Move phi after a validation."""
        if self.reference is None:
            self.reference = loss
        elif loss >= self.reference + self.slack:
            self.share, self.reference = min(1.0, self.share + self.rise), loss

    def choose(self, chance: float, kept: int) -> Act:
        """Write, replay, or take the data."""
        if self.reference is None:
            self.hear(self.validate())
        if chance >= self.share:
            return "data"
        fresh = chance < self.share * self.replay(self.fraction)
        return "written" if fresh or kept < self.capacity else "replayed"

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next choice depends on."""
        return {"share": self.share, "fraction": self.fraction, "reference": self.reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue."""
        self.share, self.fraction, self.reference = state["share"], state["fraction"], state["reference"]
