"""Objectives at several depths of one model."""

from __future__ import annotations

from collections.abc import Mapping

from torch.nn.functional import binary_cross_entropy_with_logits

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective
from limbeck.core.terms import Clock, Terms, per
from limbeck.losses.contrastive import pair_contrast
from limbeck.losses.divergence import upcast
from limbeck.objectives.named import named


def at_exits(goal: Objective, weights: Mapping[int, float]) -> Objective:
    """``goal`` at each exit of the student, weighed: ``weights`` maps the exit's layer to its weight, in order.

    No gradient is stopped: every exit's loss reaches all layers below it. Terms: the goal's, ``.`` and the layer.
    """

    @named("at_exits", goal, weights=dict(weights))
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        exits, result = student.need("exits"), Terms()
        require(len(exits) == len(weights), f"at_exits has {len(weights)} weights, but the student {len(exits)} exits")
        for (layer, weight), said in zip(weights.items(), exits, strict=True):
            for name, term in goal(said, teacher, batch, clock).items():
                result[f"{name}.{layer}"] = term._replace(weight=term.weight * weight)
        return result

    return objective


def belongs_together() -> Objective:
    """Binary cross-entropy of ``batch["same"]`` b: whether the texts of a row come from one place. Term: ``same``."""

    @named("belongs_together")
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        logits = upcast(student.need("extra")["same"])
        truth = batch["same"].to(logits.dtype)
        return per("row", binary_cross_entropy_with_logits(logits, truth, reduction="none"), "same")

    return objective


def finds_its_match(scale: float = 10.0) -> Objective:
    """Each query is to find its match among those of the batch, and the match its query (CLIP). Term: ``match``.

    ``pooled`` b d against ``extra["match"]`` b d, cosines times ``scale``; see ``losses.contrastive.pair_contrast``.
    """

    @named("finds_its_match", scale=scale)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        return per("row", pair_contrast(student.need("pooled"), student.need("extra")["match"], scale), "match")

    return objective


def depth_shares(exits: tuple[int, ...], layers: int) -> dict[int, float]:
    """Each exit weighs its share of the depth, i / L, not normalised (2503.03008)."""
    return {layer: layer / layers for layer in exits}
