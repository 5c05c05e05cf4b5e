"""One optimizer step's arithmetic: units counted before any backward, sums turned into raw means after it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from limbeck.core.batch import Batch, rows
from limbeck.core.check import LimbeckError, require
from limbeck.core.stage import Stage
from limbeck.core.terms import Clock, Terms

TAKEN = {"step", "lr", "grad_norm", "rows", "seconds"}


class Counts(dict[str, float]):
    """How often each unit occurs in the whole optimizer step, on all processes."""

    def __missing__(self, unit: str) -> float:
        raise LimbeckError(
            f"a term is averaged over {unit!r}, but the batch's boolean tensors are "
            f"{sorted(set(self) - {'row', 'batch'}) or 'none'}"
        )


def count_units(batches: list[Batch]) -> dict[str, int]:
    """Rows, batches and the true entries of every boolean tensor: all that a unit can be, known before any forward."""
    counts = {"row": 0, "batch": len(batches)}
    for batch in batches:
        counts["row"] += rows(batch)
        for name, value in batch.items():
            if value.dtype == torch.bool:
                counts[name] = counts.get(name, 0) + int(value.count_nonzero())
    return counts


def add_up(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sum of dictionaries by name, in the order given."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total


class Learner(nn.Module):
    """The step as a module that holds what is trained, so that DDP and FSDP2 see one forward pass per micro-batch."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.parts = nn.ModuleList(list(stage.train.values()))
        self.step = stage.step
        self.said = Terms()
        # what FSDP shards one by one if it is told to wrap by transformer block
        blocks = (getattr(module, "_no_split_modules", None) or () for module in stage.train.values())
        self._no_split_modules = sorted({name for names in blocks for name in names})

    def forward(self, batch: Batch, clock: Clock, counts: Mapping[str, float]) -> Tensor:
        """The loss of one micro-batch: its share of the optimizer step's mean."""
        self.said = self.step(batch, clock)
        loss = self.said.total(counts)
        if not loss.requires_grad:
            raise LimbeckError("the loss depends on nothing that is trained; is the step using the modules in train?")
        return loss


@dataclass
class Record:
    """What one optimizer step said, still on the device: nobody has waited for it yet."""

    step: int
    rate: float
    counts: Mapping[str, float]
    norm: Tensor = field(default_factory=lambda: torch.zeros(()))
    loss: Tensor | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def hear(self, loss: Tensor, said: Terms) -> None:
        """Add the loss and the sums of one micro-batch."""
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()
        for name, term in said.items():
            require(name not in TAKEN, f"a term may not be called {name!r}: the log has a value of that name")
            unit = self.units.setdefault(name, term.unit)
            if unit != term.unit:
                raise LimbeckError(f"the term {name!r} is averaged over {unit!r} and over {term.unit!r} in one step")
            value = term.sum.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        said.clear()  # the graph may go

    def tensors(self) -> list[Tensor]:
        """Loss, gradient norm and sums, in this order."""
        assert self.loss is not None
        return [self.loss, self.norm, *self.sums.values()]


def read(records: list[Record], world: int) -> list[dict[str, float]]:
    """Loss, raw means, learning rate and gradient norm of each record, over all processes.

    Waits for the device once.
    """
    if not records:
        return []
    at = iter(torch.stack([value.float() for record in records for value in record.tensors()]).tolist())
    mine = [{"": next(at), "norm": next(at), "sums": {n: next(at) for n in r.sums}, "units": r.units} for r in records]
    return [_row(record, said) for record, said in zip(records, _by_record(mine, world), strict=True)]


def _by_record(mine: list[dict], world: int) -> list[list[dict]]:
    """What each process said about each record."""
    if world == 1:
        return [[said] for said in mine]
    everyone = gather_object(mine)
    return [everyone[index :: len(mine)] for index in range(len(mine))]


def _row(record: Record, said: list[dict]) -> dict[str, float]:
    sums = add_up(part["sums"] for part in said)
    units = {name: unit for part in said for name, unit in part["units"].items()}
    row = {"step": record.step, "loss": sum(part[""] for part in said)}
    row |= {"lr": record.rate, "grad_norm": said[0]["norm"]}
    return row | {name: value / max(record.counts[units[name]], 1) for name, value in sums.items()}


def refuse_non_finite(row: Mapping[str, float], where: str, norm_may_overflow: bool = False) -> None:
    """Raise ``LimbeckError`` naming the first term of ``row`` that is NaN or infinite; the cause before its effects."""
    last = ("loss", "grad_norm")
    for name in (*(name for name in row if name not in last), *last):
        if not math.isfinite(row[name]) and not (name == "grad_norm" and norm_may_overflow):
            raise LimbeckError(
                f"{where}, step {row['step']:.0f}: {name!r} is {row[name]}; look at the data and the teacher, or lower "
                "the learning rate"
            )
