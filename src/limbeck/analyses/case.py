"""What the doctor looks at: two sides, each with a source, a model, a tokenizer and rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.core.batch import Batch, rows
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Source, model_behind
from limbeck.evaluation.model import positions, table_height
from limbeck.losses.divergence import cross_entropy

Said = tuple[str, str]
"""A level ("ok", "note", "stop") and a sentence."""

PREFIX = "teacher_"
AT_ONCE = 256  # places whose logits are held at a time


class Trial(NamedTuple):
    """What a side said at its supervised places: -log probabilities n of the targets, number of logits, their sizes.

    ``late``: logits were computed where they were asked for, not for all places at once.
    """

    nats: Tensor
    width: int
    finite: bool
    largest: float
    late: bool


@dataclass(frozen=True)
class Side:
    """The student or the teacher: ``name``, what it says, by which tokenizer it reads, and its rows."""

    name: str
    source: Source
    tokenizer: Any
    batch: Batch | None
    on: str

    @property
    def model(self) -> Any:
        """The model behind the source; None if there is none."""
        return model_behind(self.source)

    @property
    def places(self) -> Tensor:
        """The supervised places b t."""
        assert self.batch is not None
        return self.batch[self.on].bool()

    @property
    def longest(self) -> int:
        """Tokens of the longest row; 0 without rows."""
        return int(self.batch["mask"].sum(1).max()) if self.batch is not None and "mask" in self.batch else 0

    @property
    def readable(self) -> bool:
        """Whether the model has rows and positions for what it is to read."""
        if self.batch is None or "ids" not in self.batch:
            return False
        height, most = (table_height(self.model), positions(self.model)) if self.model is not None else (None, None)
        return (height is None or int(self.batch["ids"].max()) < height) and (most is None or self.longest <= most)

    @cached_property
    def trial(self) -> Trial | LimbeckError | None:
        """What it says about its rows, or why it does not; None without rows, targets or logits."""
        if self.batch is None or not self.readable or "targets" not in self.batch or not self.places.any():
            return None
        was = bool(getattr(self.model, "training", False))
        try:
            if was:
                self.model.eval()
            return listen(self.source, self.batch, self.places)
        except LimbeckError as error:
            return error
        finally:
            if was:
                self.model.train()


@dataclass(frozen=True)
class Case:
    """Both sides; ``crossed``: the ``batch`` holds the text in two cuts, one for each. ``strict``: see ``doctor``."""

    student: Side
    teacher: Side
    batch: Batch | None
    crossed: bool
    strict: bool

    @property
    def sides(self) -> tuple[Side, Side]:
        """Student and teacher."""
        return self.student, self.teacher


def make_case(
    student: Source,
    teacher: Source,
    tokenizer: Any,
    teacher_tokenizer: Any,
    batches: Sequence[Batch],
    on: str,
    most: int,
    strict: bool,
) -> Case:
    """The case of the first ``most`` rows of ``batches``, which may be empty."""
    batch = theirs = (
        {name: value[:most] for name, value in batches[0].items()} if batches and rows(batches[0]) else None
    )
    crossed = batch is not None and f"{PREFIX}ids" in batch
    if batch is not None and crossed:  # the teacher is asked in its own cut, not at places of the student's
        theirs = {name.removeprefix(PREFIX): value for name, value in batch.items() if name.startswith(PREFIX)}
        teacher = getattr(teacher, "source", teacher)
    ours = Side("student", student, tokenizer, batch, on)
    return Case(ours, Side("teacher", teacher, teacher_tokenizer or tokenizer, theirs, on), batch, crossed, strict)


@torch.no_grad()
def listen(source: Source, batch: Batch, places: Tensor) -> Trial | None:
    """What ``source`` says at ``places`` b t of ``batch``; None if it gives no logits of tokens."""
    said = source(batch)
    if said.readout is None and (said.logits is None or said.logits.dim() != 3):
        return None
    nats, finite, largest, width = [], True, 0.0, 0
    for some in _pieces(places):
        logits, targets = said.logits_at(some).float(), batch["targets"][some]
        width, top = logits.shape[-1], logits.amax(-1)
        finite = finite and bool(torch.isfinite(top).all())
        largest = max(largest, float(logits[torch.isfinite(logits)].abs().max()) if finite else 0.0)
        nats.append(cross_entropy(logits, targets.where(targets < width, torch.tensor(-100, device=targets.device))))
    return Trial(torch.cat(nats), width, finite, largest, said.logits is None)


def _pieces(places: Tensor) -> Iterator[Tensor]:
    """``places`` b t in masks of at most ``AT_ONCE`` true entries."""
    for index in places.flatten().nonzero()[:, 0].split(AT_ONCE):
        yield torch.zeros_like(places).flatten().index_fill(0, index, True).view_as(places)
