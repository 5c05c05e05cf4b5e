"""Objectives put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective
from limbeck.core.terms import Clock, Term, Terms, Weight, per, weight_at
from limbeck.objectives.named import named, spoken
from limbeck.objectives.tokens import Comparing, compare


def weighted(**parts: tuple[Weight, Objective]) -> Objective:
    """A weighted sum, ``weighted(kl=(1.0, soft()), ce=(0.5, hard()))``; weights may be schedules.

    Each term takes the name given here (``name.inner`` if an objective returns several), keeps its own unit and its raw
    sum, and carries its weight beside it, so that whoever reads the logs sees unweighted values. Objectives on what is
    predicted (``soft``, ``hard``) share one pass over the output layers.
    """
    require(parts, "weighted() needs at least one name=(weight, objective)")

    @named("weighted", **{name: _Pair(weight, goal) for name, (weight, goal) in parts.items()})
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        said = _compared(parts, student, teacher, batch, clock)
        result = Terms()
        for name, (weight, goal) in parts.items():
            terms = said[name] if name in said else goal(student, teacher, batch, clock)
            factor = weight_at(weight, clock)
            for inner, term in terms.items():
                result[name if len(terms) == 1 else f"{name}.{inner}"] = term._replace(weight=term.weight * factor)
        return result

    return objective


def _compared(
    parts: Mapping[str, tuple[Weight, Objective]], student: Signals, teacher: Signals, batch: Batch, clock: Clock
) -> dict[str, Terms]:
    """The terms of those objectives that are comparisons, computed together."""
    asked = {
        name: replace(goal.ask(clock), weight=weight_at(weight, clock))
        for name, (weight, goal) in parts.items()
        if isinstance(goal, Comparing)
    }
    values = compare(list(asked.values()), student, teacher, batch)
    return {name: per(one.on, value, one.name) for (name, one), value in zip(asked.items(), values, strict=True)}


def over_members(goal: Objective, weights: Sequence[float] | None = None) -> Objective:
    """The weighted mean of ``goal`` over the members of an ensemble teacher (``mean_source``), 1/K each by default.

    For signals that cannot be averaged beforehand, such as hidden states under a cosine.
    """

    @named("over_members", goal, weights=weights)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        members = teacher.need("members")
        shares = weights or [1 / len(members)] * len(members)
        require(len(shares) == len(members), f"over_members: {len(shares)} weights for {len(members)} teachers")
        result = Terms()
        for share, member in zip(shares, members, strict=True):
            for name, term in goal(student, member, batch, clock).items():
                so_far = result[name].sum if name in result else 0.0
                result[name] = Term(so_far + share * term.sum, term.unit, term.weight)
        return result

    return objective


class _Pair:
    """A weight and an objective, printed as the pair that was given."""

    def __init__(self, weight: Weight, goal: Objective) -> None:
        self.__name__ = f"({spoken(weight)}, {spoken(goal)})"
