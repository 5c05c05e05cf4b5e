"""A model's own past as its teacher: an exponential moving average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.signals import Signals, Source
from limbeck.core.stage import freeze
from limbeck.core.terms import Clock, Weight, weight_at


class AverageSource:
    """A frozen copy of ``model`` that follows it (Mean Teacher, 1703.01780): copy = decay * copy + (1 - decay) * model.

    ``make`` turns the copy into a source, such as ``model_source``. ``decay`` may be a schedule. Buffers are copied. In
    a stage: ``after=(teacher.follow,)``, ``state={"average": teacher}``, ``frozen={"average": teacher.average}``.
    """

    def __init__(self, model: nn.Module, make: Callable[[Any], Source], decay: Weight = 0.999) -> None:
        require(callable(decay) or 0 <= decay <= 1, f"AverageSource: decay must lie in [0, 1], but is {decay}")
        self.model, self.decay = model, decay
        self.average = freeze(copy.deepcopy(model))
        self.source = make(self.average)

    def __call__(self, batch: Batch) -> Signals:
        """What the average says."""
        return self.source(batch)

    def __repr__(self) -> str:
        return f"AverageSource({self.source!r}, decay={self.decay!r})"

    @torch.no_grad()
    def follow(self, logs: Mapping[str, float], clock: Clock) -> None:
        """Move towards the model, once per optimizer step."""
        share = 1 - weight_at(self.decay, clock)
        for mine, its in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mine.lerp_(its.to(mine.dtype), share)
        for kept, new in zip(self.average.buffers(), self.model.buffers(), strict=True):
            kept.copy_(new)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights."""
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from saved weights."""
        self.average.load_state_dict(state)
