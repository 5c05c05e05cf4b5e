"""Paces: what an objective aims at moves as training goes on, by the clock or by the loss.

    pace = AdaptiveT(t_start=0.4, t_end=1.0, alpha=0.02, beta=0.99)
    Stage(..., distill_step(student, teacher, interpolated(pace)), ..., after=[pace])

The objective reads the pace, the stage's ``after`` moves it, and checkpoints keep it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from limbeck.core.check import require
from limbeck.core.stage import Objective
from limbeck.core.terms import Clock
from limbeck.losses.divergence import interpolated_cross_entropy
from limbeck.objectives.tokens import Comparing, Comparison

NAME = "taid"  # of the term that the pace reads


class AdaptiveT:
    """TAID's t, moved after every optimizer step by that step's loss (2501.16937, the adaptive update).

    As a callback it reads ``logs["taid"]``, the cross-entropy to the target over all processes, so every process moves
    alike. ``adaptive=False`` leaves the linear schedule. ``share`` tells how many steps the adaptive term decided.
    """

    def __init__(self, t_start: float, t_end: float, alpha: float, beta: float, adaptive: bool = True) -> None:
        require(0 <= t_start < t_end <= 1, f"taid: needs 0 <= t_start < t_end <= 1, but got {t_start} and {t_end}")
        require(alpha >= 0 and 0 <= beta < 1, f"taid: needs alpha >= 0 and 0 <= beta < 1, but got {alpha} and {beta}")
        self.t_start, self.t_end, self.alpha, self.beta, self.adaptive = t_start, t_end, alpha, beta, adaptive
        self.t, self.momentum = t_start, 0.0
        self.previous: float | None = None
        self.moves, self.decided = 0, 0

    def __call__(self, logs: Mapping[str, float], clock: Clock) -> None:
        """Move t after a step. ``fit`` counts the step just done, the paper's n begins at 0."""
        self.move(logs[NAME], clock.step - 1, clock.steps)

    def move(self, loss: float, step: int, steps: int) -> None:
        """Move t after step ``step`` (0-based) of ``steps`` had ``loss``; a loss that is not finite moves nothing."""
        if not math.isfinite(loss):
            return
        previous, self.previous = self.previous, loss
        if previous is None:
            return
        self.momentum = self.beta * self.momentum + (1 - self.beta) * (previous - loss) / (previous + 1e-15)
        logistic = (1 + math.tanh(self.momentum / 2)) / 2  # cannot overflow, whatever the loss was before
        ahead = self.t + self.alpha * (1 - self.t) * logistic
        line = self.t_start + (self.t_end - self.t_start) * step / steps
        self.moves += 1
        self.decided += int(self.adaptive and ahead > line)
        self.t = min(self.t_end, max(line, ahead) if self.adaptive else line)

    @property
    def share(self) -> float:
        """Share of the moves that the adaptive term decided: 0 means that t was the linear schedule."""
        return self.decided / max(1, self.moves)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next move depends on."""
        return {name: getattr(self, name) for name in ("t", "momentum", "previous", "moves", "decided")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        for name in self.state_dict():
            setattr(self, name, state[name])


def interpolated(pace: AdaptiveT) -> Objective:
    """Cross-entropy of the student to the target at ``pace.t``, per answer token.

    The paper writes KL; the pace follows the cross-entropy, as in the released code, and the gradients are the same.
    """
    return Comparing(
        lambda clock: Comparison(NAME, "answer", partial(interpolated_cross_entropy, share=pace.t)), "interpolated()"
    )
