"""A masked language model that reads a text twice: with masked words, and whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from limbeck.core.batch import Batch
from limbeck.core.signals import Signals
from limbeck.sources.model import Pooled, model_source


@dataclass(frozen=True)
class WholeSource:
    """``pooled`` b d of the whole text and, with ``masked_view``, the ``readout`` of the text with masked words."""

    model: Any
    pooled: Pooled = "cls"
    masked_view: bool = True

    def __call__(self, batch: Batch) -> Signals:
        """Signals of one or two forward passes; ``batch`` is one of masked language modelling."""
        whole = model_source(self.model.base_model, pooled=self.pooled)(unmasked(batch))
        said = model_source(self.model)(batch) if self.masked_view else Signals()
        return replace(said, pooled=whole.pooled)


def unmasked(batch: Batch) -> Batch:
    """The batch with its targets back in their places."""
    return {**batch, "ids": batch["targets"].where(batch["answer"], batch["ids"])}
