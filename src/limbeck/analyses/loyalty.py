"""Loyalty: how faithful a student is to its teacher, whether or not either of them is right.

Label and probability loyalty: Xu et al., EMNLP 2021, "Beyond preserved accuracy". Regression loyalty: Avram et al.,
LREC 2022, arXiv 2112.12650; the paper's formula could not be verified, so two are offered under their own names,
Pearson correlation and closeness relative to the score range. Loyalty says nothing about correctness: pass ``targets``
to see the accuracies beside it. All arithmetic is in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.core.check import LimbeckError, require

AVERAGE = "average"
Numbers = Any
"""A tensor, an array or nested lists of numbers."""


def label_agreement(teacher: Numbers, student: Numbers) -> Tensor:
    """Per item, 1.0 where the most probable class is the same (ties: the first class). n c, n c -> n."""
    p, q = _pair(teacher, student)
    return (p.argmax(-1) == q.argmax(-1)).double()


def js_distance(teacher: Numbers, student: Numbers, base: float = 2.0) -> Tensor:
    """Per item, the Jensen-Shannon *distance*: the square root of the divergence, in [0, 1] for base 2. n c, n c -> n.

    0 log 0 counts as 0 and rounding below zero is clipped. Rows have to sum to 1 within 1e-4, else they are refused.
    """
    p, q = _pair(teacher, student)
    middle = (p + q) / 2
    nats = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return (nats.clamp_min(0) / torch.tensor(base, dtype=torch.float64).log()).sqrt()


def label_loyalty(teacher: Numbers, student: Numbers) -> float:
    """Share of items on which student and teacher choose the same class. n c, n c -> [0, 1]."""
    return float(label_agreement(teacher, student).mean())


def probability_loyalty(teacher: Numbers, student: Numbers, base: float = 2.0) -> float:
    """Mean of 1 - Jensen-Shannon distance; base 2 makes it [0, 1]. n c, n c -> float."""
    return float(1 - js_distance(teacher, student, base).mean())


def regression_loyalty(teacher: Numbers, student: Numbers) -> float:
    """Pearson correlation of two vectors of real predictions, in [-1, 1]. n, n -> float."""
    t, s = _scores(teacher, student)
    for who, scores in (("teacher", t), ("student", s)):
        require(
            scores.min() < scores.max(),
            f"regression loyalty: the {who} predicts {float(scores[0]):.6g} everywhere and correlates with nothing; "
            "give predictions that vary, or use range_loyalty",
        )
    t, s = t - t.mean(), s - s.mean()
    return float((t / t.norm() @ (s / s.norm())).clamp(-1, 1))


def range_loyalty(teacher: Numbers, student: Numbers, score_range: float) -> float:
    """1 - mean |teacher - student| / ``score_range`` (the width of the scale, 5 for STS). n, n -> float."""
    require(score_range > 0, f"range loyalty: score_range has to be positive, but is {score_range}")
    t, s = _scores(teacher, student)
    return float(1 - (t - s).abs().mean() / score_range)


def by_name(probabilities: Numbers, names: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """The columns of ``probabilities`` n c, which stand in the order ``names``, in the order ``wanted``."""
    if sorted(names) != sorted(wanted) or len(set(names)) != len(names):
        raise LimbeckError(
            f"loyalty: teacher and student do not have the same classes: {list(wanted)} and {list(names)}"
        )
    return torch.as_tensor(probabilities)[:, [list(names).index(name) for name in wanted]]


def mean_prediction(teachers: Sequence[Numbers], weights: Sequence[float] | None = None) -> Tensor:
    """Weighted mean of the teachers' probabilities (not of their logits); uniform by default. K of n c -> n c."""
    require(len(teachers) > 0, "loyalty: no teacher was given; give at least one")
    shares = [1 / len(teachers)] * len(teachers) if weights is None else list(weights)
    if len(shares) != len(teachers) or abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
        raise LimbeckError(
            f"loyalty: {len(teachers)} teacher(s) need as many weights, not negative, that sum to 1; got {shares}"
        )
    tables = [_probabilities(teacher, "teacher") for teacher in teachers]
    require(len({table.shape for table in tables}) == 1, f"loyalty: the teachers differ in shape: {_shapes(tables)}")
    return torch.stack([share * table for share, table in zip(shares, tables, strict=True)]).sum(0)


class Loyalty:
    """Running label and probability loyalty of a student to several teachers and to their average.

    Feed batches to ``add``; ``result`` gives ``{teacher: {"label", "probability"[, "accuracy"]}, "average": ...}`` and,
    when targets were given, the student's own accuracy under ``"student"``. Sums and counts are kept, so batches of any
    size weigh every item equally.
    """

    def __init__(self, weights: Sequence[float] | None = None, base: float = 2.0) -> None:
        self.weights, self.base = weights, base
        self.items = 0
        self.sums: dict[str, dict[str, float]] = {}

    def add(self, student: Numbers, teachers: Mapping[str, Numbers], targets: Numbers | None = None) -> None:
        """Count one batch: ``student`` and ``teachers`` n c are probabilities, ``targets`` n the true classes."""
        require(
            AVERAGE not in teachers and "student" not in teachers, "loyalty: 'average' and 'student' are reserved names"
        )
        mean = {AVERAGE: mean_prediction(list(teachers.values()), self.weights)}
        for name, teacher in {**teachers, **mean}.items():
            self._count(name, "label", label_agreement(teacher, student))
            self._count(name, "probability", 1 - js_distance(teacher, student, self.base))
        if targets is not None:
            for name, table in {**teachers, **mean, "student": student}.items():
                self._count(name, "accuracy", _hits(table, targets))
        self.items += len(mean[AVERAGE])

    def _count(self, name: str, measure: str, values: Tensor) -> None:
        sums = self.sums.setdefault(name, {})
        sums[measure] = sums.get(measure, 0.0) + float(values.sum())

    def result(self) -> dict[str, dict[str, float]]:
        """Means over everything added so far."""
        require(self.items > 0, "loyalty: no items were counted; give at least one batch of predictions")
        return {name: {key: total / self.items for key, total in sums.items()} for name, sums in self.sums.items()}


def loyalty(
    student: Numbers,
    teachers: Mapping[str, Numbers],
    targets: Numbers | None = None,
    weights: Sequence[float] | None = None,
) -> dict[str, dict[str, float]]:
    """Loyalty of one table of predictions: see ``Loyalty``. ``student`` and each teacher are n c probabilities."""
    meter = Loyalty(weights)
    meter.add(student, teachers, targets)
    return meter.result()


def _relative_entropy(p: Tensor, m: Tensor) -> Tensor:
    """Sum over classes of p log(p / m) in nats, with 0 log 0 = 0. Where p > 0, m is at least p / 2."""
    return (p * torch.where(p > 0, p / m, 1.0).log()).sum(-1)


def _hits(table: Numbers, targets: Numbers) -> Tensor:
    p, y = _probabilities(table, "prediction"), torch.as_tensor(targets)
    require(y.shape == p.shape[:1], f"loyalty: {len(p)} predictions, but targets of shape {tuple(y.shape)}")
    return (p.argmax(-1) == y).double()


def _pair(teacher: Numbers, student: Numbers) -> tuple[Tensor, Tensor]:
    p, q = _probabilities(teacher, "teacher"), _probabilities(student, "student")
    require(
        p.shape == q.shape,
        f"loyalty: teacher and student have to be of one shape (items, classes); got {_shapes([p, q])}",
    )
    return p, q


def _probabilities(table: Numbers, who: str) -> Tensor:
    p = torch.as_tensor(table).detach().double()
    if p.ndim != 2 or p.shape[0] == 0 or p.shape[1] < 2:
        raise LimbeckError(f"loyalty: the {who} needs items x classes, at least 1 x 2; got shape {tuple(p.shape)}")
    require(
        bool(torch.isfinite(p).all()) and bool((p >= 0).all()),
        f"loyalty: the {who} has negative or non-finite probabilities",
    )
    wrong = ((p.sum(-1) - 1).abs() > 1e-4).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise LimbeckError(
            f"loyalty: the {who}'s row {row} sums to {float(p[row].sum()):.6g} instead of 1; "
            "pass probabilities, not logits"
        )
    return p


def _scores(teacher: Numbers, student: Numbers) -> tuple[Tensor, Tensor]:
    t, s = (torch.as_tensor(x).detach().double() for x in (teacher, student))
    require(
        t.ndim == 1 and t.shape == s.shape,
        f"regression loyalty: expected two vectors of one length; got {_shapes([t, s])}",
    )
    require(len(t) > 0, "regression loyalty: no predictions were given")
    require(bool(torch.isfinite(torch.stack([t, s])).all()), "regression loyalty: some predictions are not finite")
    return t, s


def _shapes(tables: Sequence[Tensor]) -> str:
    return " and ".join(str(tuple(table.shape)) for table in tables)
