"""Text by the student, mixed into the text it trains on (on-policy distillation).

``Rollout`` wraps a stream of ordinary batches and gives ordinary batches. At every batch a *policy* says whether the
text stays as it is, is written anew by the student, or is drawn from what the student wrote before::

    write = Writer(student, Sampling(new_tokens=64), end_tokens(student, tokenizer))
    stream = Rollout(stream, write, Share(0.5), seed)                  # GKD
    stream = Rollout(stream, write, Adaptive(validate, period=100), seed)  # DistiLLM

Batch ``k`` depends on the weights of its step and on ``(seed, k)``, so resuming needs no generator's state; what the
student wrote before is saved with every checkpoint. Under DDP each process writes its own batches only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import distributed

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.feed import Feed
from limbeck.data.policies import Policy, Share
from limbeck.data.samples import Sample, batch_of, samples_of

Write = Callable[[list[Sample], int], list[Sample]]
"""Rows and a seed -> the same prompts with completions by a model."""


class Rollout:
    """An endless, resumable stream of batches, some of them with text by the student.

    ``stream`` gives batches as ``samples_of`` reads them; a stream of prompts alone is one without supervised tokens.
    ``write`` is a ``Writer`` or another function that completes samples, ``revise`` one that changes what was written
    before it is used or kept (corrections, log-probabilities to note).

    Every batch gets one more mask, ``reference`` b t: ``answer`` where the text is the data's own, false where the
    student wrote it. The ordinary loss of a token belongs there (``hard(on="reference")``): on the student's own text
    it would teach the student what it says anyway. ``given`` counts batches by what they hold.
    """

    def __init__(
        self,
        stream: Iterable[Batch],
        write: Write,
        policy: Policy | None = None,
        seed: int = 0,
        revise: Write | None = None,
    ) -> None:
        self.write, self.policy, self.seed, self.revise = write, policy or Share(1.0), seed, revise
        self.position = 0
        self.kept: list[Sample] = []
        self.given: dict[str, int] = dict.fromkeys(("data", "written", "replayed"), 0)
        self._feed = Feed(stream)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            (batch,) = self._feed.take()
            number = self.position
            self.position += 1
            # fit gives batch k to process k modulo their number; what the others get nobody reads here
            yield self._turn(batch, number) if number % world() == rank() else batch

    def _turn(self, batch: Batch, number: int) -> Batch:
        rng = np.random.default_rng([self.seed, number])
        act = self.policy.choose(rng.random(), len(self.kept))
        self.given[act] += 1
        if act == "data":
            require(
                batch["answer"].any(),
                "the stream gives prompts without completions, so every text must be the student's own; give the data "
                "completions, or train on-policy alone",
            )
            return batch | {"reference": batch["answer"].bool()}
        rows = samples_of(batch)
        made = batch_of(self._written(rows, rng) if act == "written" else self._replayed(len(rows), rng))
        return made | {"reference": torch.zeros_like(made["answer"])}

    def _written(self, rows: list[Sample], rng: np.random.Generator) -> list[Sample]:
        seeds = rng.integers(2**63, size=2).tolist()
        rows = self.write(rows, seeds[0])
        rows = rows if self.revise is None else self.revise(rows, seeds[1])
        if self.policy.capacity:
            self.kept = [*self.kept, *rows][-self.policy.capacity :]
        return rows

    def _replayed(self, count: int, rng: np.random.Generator) -> list[Sample]:
        chosen = rng.choice(len(self.kept), size=count, replace=len(self.kept) < count)
        return [self.kept[index] for index in chosen]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands and what was kept; every process has to ask, each keeps rows of its own."""
        return {
            "position": self.position,
            "stream": self._feed.state_dict(),
            "policy": self.policy.state_dict(),
            "given": dict(self.given),
            "kept": everyone([row.state() for row in self.kept]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; other processes than before share out what was kept."""
        self.position, self.given = int(state["position"]), dict(state["given"])
        self._feed.load_state_dict(state["stream"])
        self.policy.load_state_dict(state["policy"])
        kept = state["kept"]
        mine = kept[rank()] if len(kept) == world() else [row for part in kept for row in part][rank() :: world()]
        self.kept = [Sample.of(row) for row in mine]


class Reused:
    """Every ``collect`` batches of a stream, ``times`` times over, each time in another order.

    Writing costs more than a step: so what was written is used again while the student has moved by few steps (the
    inner epochs of PPO). Both count batches of one process.
    """

    def __init__(self, stream: Iterable[Batch], collect: int, times: int, seed: int = 0) -> None:
        require(collect >= 1 and times >= 1, f"collect and times must be at least 1, but are {collect} and {times}")
        self.collect, self.times, self.seed = collect, times, seed
        self.position = 0
        self.held: dict[int, Batch] = {}
        self._feed = Feed(stream)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            size = self.collect * world()
            turn, place = divmod(self.position, size * self.times)
            if place == 0:
                self.held = dict(enumerate(batch for _ in range(size) for batch in self._feed.take()))
            self.position += 1
            yield self.held[self._which(turn, place, size)]

    def _which(self, turn: int, place: int, size: int) -> int:
        """The batch at ``place`` of a turn; those that go to all processes in one round stay together."""
        again, index = divmod(place, size)
        round_, process = divmod(index, world())
        order = np.random.default_rng([self.seed, turn, again]).permutation(self.collect)
        return int(order[round_]) * world() + process

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands and the batches that will be used again; every process has to ask."""
        mine = {number: batch for number, batch in self.held.items() if number % world() == rank()}
        held = {number: batch for part in everyone(mine) for number, batch in part.items()}
        return {"position": self.position, "stream": self._feed.state_dict(), "held": held, "world": world()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; other processes than before begin with text that is written anew."""
        self.position, self.held = int(state["position"]), dict(state["held"])
        if state["world"] != world():
            turn = self.collect * self.times * world()
            self.position, self.held = -(-self.position // turn) * turn, {}
        self._feed.load_state_dict(state["stream"])


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return distributed.get_rank() if world() > 1 else 0


def everyone(mine: Any) -> list[Any]:
    """``mine`` of every process, in order."""
    if world() == 1:
        return [mine]
    found: list[Any] = [None] * world()
    distributed.all_gather_object(found, mine)
    return found
