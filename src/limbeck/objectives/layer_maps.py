"""Which student layer learns from which teacher layer. Layer 0 are the embeddings, layer i what block i gives."""

from __future__ import annotations

from collections.abc import Callable
from math import lcm

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from limbeck.core.check import require

Pairs = list[tuple[int, int]]


def skip(student: int, teacher: int) -> Pairs:
    """Spread evenly: i -> floor(i L / M), for a student of M layers and a teacher of L (PKD, 1908.09355)."""
    return [(i, i * teacher // student) for i in range(student + 1)]


def last(student: int, teacher: int) -> Pairs:
    """The teacher's last layers: i -> L - M + i (PKD, 1908.09355)."""
    require(student <= teacher, f"a student of {student} layers cannot learn from the last {student} of {teacher}")
    return [(i, teacher - student + i) for i in range(student + 1)]


def single(student: int, teacher: int) -> Pairs:
    """The last layer from the last, and nothing else."""
    return [(student, teacher)]


def every(student: int, teacher: int) -> Pairs:
    """Every layer with every other, embeddings with embeddings: what a transport plan (EMD) chooses from."""
    return [(0, 0), *((i, j) for i in range(1, student + 1) for j in range(1, teacher + 1))]


MAPS: dict[str, Callable[[int, int], Pairs]] = {"skip": skip, "last": last, "single": single, "emd": every}


def transport(cost: Tensor) -> Tensor:
    """The cheapest plan that carries masses 1 / M to 1 / L, for ``cost`` M x L; exact, without a gradient (EMD).

    Uniform masses make it an assignment of lcm(M, L) equal grains (BERT-EMD, 2010.06133).
    """
    student, teacher = cost.shape
    grains = lcm(student, teacher)
    values = cost.detach().double().cpu().numpy()
    require(np.isfinite(values).all(), "a layer's distance is NaN or infinite, so no plan can be made; lower --lr")
    fine = values.repeat(grains // student, 0).repeat(grains // teacher, 1)
    rows, columns = linear_sum_assignment(fine)
    plan = cost.new_zeros(cost.shape)
    for row, column in zip(rows * student // grains, columns * teacher // grains, strict=True):
        plan[row, column] += 1 / grains
    return plan
