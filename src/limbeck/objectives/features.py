"""Objectives on hidden states and on one vector per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from limbeck.core.batch import Batch
from limbeck.core.check import one_of
from limbeck.core.signals import Signals, chosen
from limbeck.core.stage import Objective
from limbeck.core.terms import Clock, Terms, per
from limbeck.losses.feature import hidden_cosine, hidden_mse, hidden_sse
from limbeck.objectives.named import named, unit
from limbeck.objectives.relations import layer_of

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": hidden_mse,
    "sse": hidden_sse,
    "cosine": hidden_cosine,
}
LAST = {-1: -1}


def hidden(
    kind: str = "mse",
    layers: Mapping[int, int] | None = None,
    projection: nn.Module | None = None,
    on: str = "mask",
) -> Objective:
    """Distance of hidden states, averaged over the true entries of ``batch[on]`` and over the pairs of layers.

    ``kind``: "mse", "sse" (summed over the width) or "cosine" (1 - cos). ``layers`` maps student to teacher layers as
    the sources recorded them (negative numbers count from the last recorded one; by default the last of both).
    ``projection`` takes the student's states to the teacher's width; it learns only if ``Stage.train`` names it.
    Term: ``hidden``.
    """
    distance = DISTANCES[one_of(kind, DISTANCES, "hidden: kind")]
    pairs = dict(layers or LAST)

    @named("hidden", kind, layers=pairs, projection=projection, on=on)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        where = unit(batch, on)
        values = [
            distance(
                _project(projection, chosen(layer_of(student, "hidden", ours), where)), _chosen(teacher, theirs, where)
            )
            for ours, theirs in pairs.items()
        ]
        return per(on, sum(values[1:], values[0]) / len(values), "hidden")

    return objective


def pooled(kind: str = "mse", projection: nn.Module | None = None) -> Objective:
    """Distance of the one vector per row, averaged over rows; arguments as in ``hidden``. Term: ``pooled``."""
    distance = DISTANCES[one_of(kind, DISTANCES, "pooled: kind")]

    @named("pooled", kind, projection=projection)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        return per("row", distance(_project(projection, student.need("pooled")), teacher.need("pooled")), "pooled")

    return objective


def _chosen(signals: Signals, layer: int, where: Tensor) -> Tensor:
    return chosen(layer_of(signals, "hidden", layer), where)


def _project(projection: nn.Module | None, states: Tensor) -> Tensor:
    return states if projection is None else projection(states)
