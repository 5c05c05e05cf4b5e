"""Objectives on how positions relate inside self-attention (MiniLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError, one_of, require
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective
from limbeck.core.terms import Clock, Terms, per
from limbeck.losses.relation import relation_kl
from limbeck.objectives.named import named, unit

QKV = ("q", "k", "v")


def relation(
    first: str = "q",
    second: str = "k",
    student_layer: int | None = None,
    teacher_layer: int | None = None,
    heads: int | None = None,
    causal: bool = False,
    on: str = "mask",
) -> Objective:
    """KL between the teacher's and the student's relation of ``first`` and ``second`` ("q", "k" or "v"), per row.

    ("q", "k") and ("v", "v") with the models' own heads is MiniLM (2002.10957); ("q", "q"), ("k", "k") and ("v", "v")
    with ``heads`` relation heads is MiniLMv2 (2012.15828). A layer number may be left out where the source recorded
    only one; negative numbers count from the last recorded one. ``on`` names the mask of real tokens; ``causal`` as in
    ``losses.relation.relation_kl``. The mean is over all rows, also over those of one token, whose value is 0. Rows
    that hold several texts are refused. Term: ``relation``.
    """
    a, b = (QKV.index(one_of(name, QKV, "relation")) for name in (first, second))
    layers = {"student_layer": student_layer, "teacher_layer": teacher_layer}

    @named("relation", first, second, **layers, heads=heads, causal=causal or None)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        require(
            "segment" not in batch,
            "a relation compares all tokens of a row, and these rows hold several texts each; give each a row of its "
            "own",
        )
        ours, theirs = layer_of(student, "qkv", student_layer), layer_of(teacher, "qkv", teacher_layer)
        pairs = (ours[a], ours[b]), (theirs[a], theirs[b])
        return per("row", relation_kl(*pairs, unit(batch, on), heads=heads, causal=causal), "relation")

    return objective


def layer_of(signals: Signals, name: str, layer: int | None) -> Any:
    """The signal ``name`` ("qkv" or "hidden") of ``layer``: by number, from the end, or the only one recorded."""
    recorded: Mapping[int, Any] = signals.need(name)
    numbers = sorted(recorded)
    if layer is None and len(numbers) == 1:
        return recorded[numbers[0]]
    if layer is not None and layer < 0 and -layer <= len(numbers):
        return recorded[numbers[layer]]
    if layer is not None and layer in recorded:
        return recorded[layer]
    wanted = "one layer, without saying which" if layer is None else f"layer {layer}"
    raise LimbeckError(
        f"the objective needs {name} of {wanted}, but the source recorded {numbers}; name a recorded layer, or ask the "
        f"source for it: model_source(model, {name}=[...])"
    )
