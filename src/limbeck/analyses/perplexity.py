"""How well two models read several domains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from limbeck.analyses.agreement import agreement
from limbeck.core.batch import Batch, to_device
from limbeck.core.check import LimbeckError, require
from limbeck.core.signals import Source, model_behind


class DomainPerplexity:
    """Perplexities of ``student`` and ``teacher`` on each domain's ``held`` batches, whenever it is called.

    A perplexity is exp of the mean over all supervised tokens of the domain, not over its rows. Models are put into
    eval mode; the teacher is asked once. A domain without supervised text is refused.
    """

    def __init__(self, student: Source, teacher: Source, held: Mapping[str, Sequence[Batch]]) -> None:
        require(held, "DomainPerplexity: there is no domain; give held-out batches of at least one")
        self.student, self.teacher, self.held = student, teacher, held
        self._taught: dict[str, float] = {}

    def __call__(self) -> dict[str, tuple[float, float]]:
        """Domain -> perplexity of the student, of the teacher."""
        self._taught = self._taught or perplexities(self.teacher, self.held, _place(self.student))
        return {name: (value, self._taught[name]) for name, value in perplexities(self.student, self.held).items()}


def perplexities(
    source: Source, held: Mapping[str, Sequence[Batch]], device: torch.device | None = None
) -> dict[str, float]:
    """Perplexity of ``source`` on each domain of ``held``; its model is put into eval mode.

    Batches go to where the model is; for a source without one (a mean, a store), to ``device``.
    """
    if isinstance(model := model_behind(source), torch.nn.Module):
        model.eval()
    device, found = _place(source) or device, {}
    for name, batches in held.items():
        here = batches if device is None else [to_device(batch, device) for batch in batches]
        try:
            nll = agreement(source, None, here).mean("nll")
        except LimbeckError as error:
            raise LimbeckError(f"domain {name!r}: {error}") from error
        found[name] = math.inf if nll > 700 else math.exp(nll)
    return found


def _place(source: Source) -> torch.device | None:
    model = model_behind(source)
    return next(model.parameters()).device if isinstance(model, torch.nn.Module) else None
