"""Networks that learn beside a student and are thrown away: critics and projections, one for each pair of layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Critic(nn.Module):
    """Scores how well a student's vector fits a teacher's: the inner product of what two networks make of them.

    ``baseline`` maps the teacher's vector to one number, the log of what a chance pair scores.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, baseline: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher, self.baseline = student, teacher, baseline

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Scores K x K (rows: the student's) and log baseline K, from K x d and K x d'."""
        base = self.baseline(teacher)[:, 0]
        return self.student(student) @ self.teacher(teacher).T, base


def mlp_critic(student: int, teacher: int, hidden: int = 512, out: int = 64) -> Critic:
    """A ``Critic`` of two hidden ReLU layers a side (sizes as in the code of 2109.11105), for these widths."""
    return Critic(_mlp(student, hidden, out), _mlp(teacher, hidden, out), _mlp(teacher, hidden, 1))


def projection(student: int, teacher: int, bias: bool = True) -> nn.Module:
    """A linear map to the teacher's width; nothing where the widths are equal."""
    return nn.Identity() if student == teacher else nn.Linear(student, teacher, bias)


def pair_name(pair: Sequence[int]) -> str:
    """The name of a pair's network in a ``ModuleDict``."""
    return f"{pair[0]}-{pair[1]}"


def _mlp(width: int, hidden: int, out: int) -> nn.Module:
    layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out)]
    return nn.Sequential(*layers)
