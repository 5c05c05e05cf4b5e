"""Whole comparisons of what goes on inside two encoders: the objective, its networks, and what has to be recorded."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from limbeck.core.check import require
from limbeck.core.stage import Objective
from limbeck.objectives.critics import pair_name, projection
from limbeck.objectives.intermediate import FIXED, Layers
from limbeck.objectives.layer_maps import skip
from limbeck.objectives.relations import relation
from limbeck.objectives.weighted import weighted

Shape = tuple[int, int, int]
"""Layers, width and heads of a model (``students.layers.shape``)."""


class Latent(NamedTuple):
    """``goal`` compares; ``links`` learns beside the student; ``asked`` is for the two ``model_source``s."""

    goal: Objective
    links: nn.ModuleDict
    asked: tuple[dict[str, Any], dict[str, Any]]


def states(student: Shape, teacher: Shape) -> Latent:
    """TinyBERT's (1909.10351, equations 7 to 9): layer i of M learns from layer floor(i L / M), 0 are the embeddings.

    Squared differences of states, each pair with a linear map of its own to the teacher's width, and of attention
    scores before the softmax (see ``intermediate.attention``); each is a sum over layers. Terms: ``embeddings``,
    ``states``, ``attention``.
    """
    (layers, width, _), (teacher_layers, teacher_width, _) = student, teacher
    require(
        layers <= teacher_layers,
        f"a student of {layers} layers cannot learn layer by layer from a teacher of {teacher_layers}; give it fewer, "
        "or compare relations of the last layers alone",
    )
    pairs = skip(layers, teacher_layers)
    links = nn.ModuleDict({pair_name(pair): projection(width, teacher_width, bias=False) for pair in pairs})
    goal = weighted(
        embeddings=(1.0, Layers(FIXED["mse"], pairs[:1], links)),
        states=(1.0, Layers(FIXED["mse"], pairs[1:], links)),
        attention=(1.0, Layers(FIXED["attention_mse"], pairs[1:])),
    )
    ours, theirs = (list(side) for side in zip(*pairs, strict=True))
    return Latent(goal, links, ({"hidden": ours, "qkv": ours[1:]}, {"hidden": theirs, "qkv": theirs[1:]}))


def relations(student: Shape, teacher: Shape, heads: int) -> Latent:
    """MiniLM's (2012.15828): how queries, keys and values of the last layers relate among themselves.

    ``heads`` relation heads have to divide both widths. Terms: ``queries``, ``keys``, ``values``.
    """
    for _, width, _ in (student, teacher):
        require(heads >= 1 and width % heads == 0, f"{heads} relation heads do not divide a width of {width}")
    goal = weighted(**{name: (1.0, relation(name[0], name[0], heads=heads)) for name in ("queries", "keys", "values")})
    return Latent(goal, nn.ModuleDict(), ({"qkv": [-1]}, {"qkv": [-1]}))
