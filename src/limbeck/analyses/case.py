"""What the doctor looks at: two sides, each with a source, a model, a tokenizer and rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from limbeck.core.batch import IGNORE, Batch, rows
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals, Source, model_behind
from limbeck.evaluation.model import positions, table_height
from limbeck.losses.divergence import cross_entropy

Said = tuple[str, str]
"""A level ("ok", "note", "stop") and a sentence."""

PREFIX = "teacher_"
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
AT_ONCE = 256  # places whose logits are held at a time


class Trial(NamedTuple):
    """What a side said at its supervised places: -log probabilities n of the targets, number of logits, their sizes.

    Without targets ``nats`` is empty; with states only, ``width`` is 0. ``late``: no logits were computed but
    where they were asked for.
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
        """The supervised places b t, or rows b."""
        assert self.batch is not None
        return self.batch[self.on].bool()

    @property
    def targets(self) -> Tensor | None:
        """What is to be said at every place b t, or the class of every row b; None where nobody knows."""
        assert self.batch is not None
        targets = self.batch.get("labels" if self.by_row else "targets")
        return None if targets is None or targets.is_floating_point() else targets

    @property
    def by_row(self) -> bool:
        """Whether rows are supervised, and not places."""
        return self.places.dim() == 1

    @property
    def supervised(self) -> bool:
        """Whether there are rows with a mask of supervised places."""
        return self.batch is not None and self.on in self.batch

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
        """What it says about its rows, or why it does not; None without rows, or where it says nothing."""
        if self.batch is None or not self.readable or not self.supervised or not self.places.any():
            return None
        was = bool(getattr(self.model, "training", False))
        try:
            if was:
                self.model.eval()
            return listen(self.source, self.batch, self.places, self.targets)
        except LimbeckError as error:
            return error
        finally:
            if was:
                self.model.train()


@dataclass(frozen=True)
class Case:
    """Both sides; ``crossed``: the ``batch`` holds the text in two cuts, one for each.

    ``strict`` and ``taught``: see ``doctor``.
    """

    student: Side
    teacher: Side
    batch: Batch | None
    crossed: bool
    strict: bool
    taught: bool

    @property
    def sides(self) -> tuple[Side, Side]:
        """Student and teacher."""
        return self.student, self.teacher

    @property
    def one_model(self) -> bool:
        """Whether both are one model that reads two things: then neither learns."""
        return self.student.model is not None and self.student.model is self.teacher.model

    @property
    def writes(self) -> bool:
        """Whether one of them writes text, or might: of an encoder it is known that it does not."""
        known = [type(side.model).__name__ for side in self.sides if side.model is not None]
        return not known or any(name.endswith(WRITERS) for name in known)


def make_case(
    student: Source,
    teacher: Source,
    tokenizer: Any,
    teacher_tokenizer: Any,
    batches: Sequence[Batch],
    on: str,
    most: int,
    strict: bool,
    taught: bool = True,
    teacher_name: str = "teacher",
) -> Case:
    """The case of the first ``most`` rows of ``batches``, which may be empty."""
    batch = theirs = first_rows(batches, most)
    crossed = batch is not None and f"{PREFIX}ids" in batch
    if batch is not None and crossed:  # the teacher is asked in its own cut, not at places of the student's
        theirs = {name.removeprefix(PREFIX): value for name, value in batch.items() if name.startswith(PREFIX)}
        teacher = getattr(teacher, "source", teacher)
    ours = Side("student", student, tokenizer, batch, on)
    other = Side(teacher_name, teacher, teacher_tokenizer or tokenizer, theirs, on)
    return Case(ours, other, batch, crossed, strict, taught)


def first_rows(batches: Sequence[Batch], most: int) -> Batch | None:
    """The first ``most`` rows of ``batches``, padded on the right to one length; None where there is no row."""
    some: list[Batch] = []
    for batch in batches:
        left = most - sum(map(rows, some))
        if left > 0 and rows(batch):
            some.append({name: value[:left] for name, value in batch.items()})
    return {name: _joined(name, [batch[name] for batch in some]) for name in some[0]} if some else None


def _joined(name: str, parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1 or parts[0].dim() == 1:
        return torch.cat(list(parts))
    width, empty = max(part.shape[1] for part in parts), IGNORE if name.endswith("targets") else 0
    room = [(0, 0) * (part.dim() - 2) + (0, width - part.shape[1]) for part in parts]
    return torch.cat([pad(part, sizes, value=empty) for part, sizes in zip(parts, room, strict=True)])


@torch.no_grad()
def listen(source: Source, batch: Batch, places: Tensor, targets: Tensor | None) -> Trial | None:
    """What ``source`` says at ``places`` b t (or rows b) of ``batch``; None if it says nothing about them."""
    said = source(batch)
    if said.readout is None and (said.logits is None or said.logits.dim() != places.dim() + 1):
        return _states(said, batch)
    nats, finite, largest, width = [], True, 0.0, 0
    for some in _pieces(places):
        logits = (said.logits[some] if said.logits is not None else said.logits_at(some)).float()
        width, top = logits.shape[-1], logits.amax(-1)
        finite = finite and bool(torch.isfinite(top).all())
        largest = max(largest, float(logits[torch.isfinite(logits)].abs().max()) if finite else 0.0)
        if targets is not None:
            wanted = targets[some]
            nats.append(cross_entropy(logits, wanted.where(wanted < width, IGNORE)))
    late = said.logits is None or places.dim() == 1
    return Trial(torch.cat(nats) if nats else torch.empty(0), width, finite, largest, late)


def _states(said: Signals, batch: Batch) -> Trial | None:
    """The same of a source that gives states, or queries, keys and values, at the real tokens."""
    found = [*said.hidden.values(), *(part.transpose(1, 2) for layer in said.qkv.values() for part in layer)]
    if "mask" not in batch or not found:
        return None
    values = [states[batch["mask"].bool()] for states in found]
    finite = all(bool(torch.isfinite(value).all()) for value in values)
    largest = max(float(value.abs().max()) for value in values) if finite else 0.0
    return Trial(torch.empty(0), 0, finite, largest, True)


def _pieces(places: Tensor) -> Iterator[Tensor]:
    """``places``, b t or b, in masks of at most ``AT_ONCE`` true entries."""
    for index in places.flatten().nonzero()[:, 0].split(AT_ONCE):
        yield torch.zeros_like(places).flatten().index_fill(0, index, True).view_as(places)
