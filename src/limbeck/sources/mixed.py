"""A model that reads blends of two rows: mixup in the space of word embeddings (Zhang et al. 2018, 1710.09412)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.signals import Signals
from limbeck.sources.model import ModelSource


@dataclass
class Mixed:
    """``source``, whose words are share * embedding(ids) + (1 - share) * embedding(other_ids).

    The batch gives ``other_ids`` b t and ``share`` b; a batch without them is read as it is.
    """

    source: ModelSource

    def __call__(self, batch: Batch) -> Signals:
        """Signals of one forward pass."""
        if "other_ids" not in batch:
            return self.source(batch)
        table, share = self.source.model.get_input_embeddings(), batch["share"][:, None, None]
        require(batch["other_ids"].shape == batch["ids"].shape, "mixup blends rows of one length")

        def blend(module: nn.Module, inputs: Any, words: Tensor) -> Tensor:
            return share * words + (1 - share) * module.forward(batch["other_ids"])

        with_hook = table.register_forward_hook(blend)
        try:
            return self.source(batch)
        finally:
            with_hook.remove()

    def __repr__(self) -> str:
        return f"mixed({self.source!r})"


def mixed(source: ModelSource) -> Mixed:
    """``source`` for batches of ``data.labelled`` with mixup."""
    return Mixed(replace(source))
