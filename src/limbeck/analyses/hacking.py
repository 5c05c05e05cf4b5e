"""Teacher hacking: a student that still comes nearer to its teacher while it moves away from the truth.

The truth is an *oracle*, a model that the teacher itself has learned from (Tiapkin et al., ICML 2025, arXiv
2502.02671). ``OracleWatch`` follows any run that has one::

    says, taught, truth = (model_source(model) for model in (student, teacher, oracle))
    watch = OracleWatch(student, says, taught, truth, teacher_texts, oracle_texts, per_text())
    fit(Stage(..., after=[every(100, watch)]))
    watch.verdict()

``bend`` needs no oracle: it looks for the place where the distance to the teacher leaves its power law.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from limbeck.analyses.measure import measure
from limbeck.core.batch import Batch, to_device
from limbeck.core.check import require
from limbeck.core.signals import Source
from limbeck.core.stage import Objective
from limbeck.core.terms import Clock, Terms


@dataclass(frozen=True)
class Look:
    """The student's distance to teacher (``proxy``) and oracle (``golden``) after ``step`` optimizer steps."""

    step: int
    proxy: float
    golden: float


def distance(says: Source, reference: Source, texts: Iterable[Batch], goal: Objective) -> float:
    """How far ``says`` is from ``reference`` on ``texts``: the one term of ``goal``, averaged over all of them."""

    def step(batch: Batch, clock: Clock) -> Terms:
        return goal(says(batch), reference(batch), batch, clock)

    (found,) = measure(step, texts).values()
    return found


class OracleWatch:
    """Looks at proxy and golden distance whenever it is called; a callback for ``Stage.after``.

    ``student`` is the module that learns and ``says`` its source. The distance to a reference is measured on texts that
    the reference wrote after prompts that nobody trains on: ``teacher_texts`` for proxy, ``oracle_texts`` for golden
    (batches with ``answer``). ``goal`` has one term, such as ``objectives.texts.per_text()``.
    """

    def __init__(
        self,
        student: nn.Module,
        says: Source,
        teacher: Source,
        oracle: Source,
        teacher_texts: Iterable[Batch],
        oracle_texts: Iterable[Batch],
        goal: Objective,
    ) -> None:
        self.student, self.says, self.goal = student, says, goal
        self.sides = {"proxy": (teacher, list(teacher_texts)), "golden": (oracle, list(oracle_texts))}
        for name, (_, texts) in self.sides.items():
            require(texts, f"OracleWatch: there are no texts to measure the {name} distance on; give some")
        self.looks: list[Look] = []

    def __call__(self, logs: Mapping[str, float], clock: Clock) -> None:
        """Look, after an optimizer step."""
        self.look(clock.step)

    def look(self, step: int) -> Look:
        """Measure now, and remember it as the state after ``step`` steps."""
        self.student.eval()
        seen = Look(step, *(self._distance(*self.sides[name]) for name in ("proxy", "golden")))
        self.looks.append(seen)
        return seen

    def _distance(self, reference: Source, texts: list[Batch]) -> float:
        device = next(self.student.parameters()).device
        return distance(self.says, reference, (to_device(batch, device) for batch in texts), self.goal)

    def verdict(self) -> dict[str, Any]:
        """Least and last golden distance, their ratio, and since when the teacher is hacked and the law is bent."""
        golden = [look.golden for look in self.looks]
        least = min(range(len(golden)), key=golden.__getitem__)
        return {
            "golden_least": golden[least],
            "golden_least_step": self.looks[least].step,
            "golden_last": golden[-1],
            "golden_ratio": golden[-1] / max(golden[least], 1e-12),
            "proxy_last": self.looks[-1].proxy,
            "hacked_since": hacked(self.looks),
            "bent_since": bend([look.step for look in self.looks], [look.proxy for look in self.looks]),
        }

    def state_dict(self) -> dict[str, Any]:
        """All looks so far."""
        return {"looks": [asdict(look) for look in self.looks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue."""
        self.looks = [Look(**look) for look in state["looks"]]


def hacked(looks: Sequence[Look], rise: float = 0.05, stall: float = 0.05) -> int | None:
    """The step since which golden is more than ``rise`` (a share) above its least while proxy fell or stalled.

    Proxy stalls where it is at most ``stall`` (a share) above its own least. None if that is not so at the last look.
    """
    since: int | None = None
    for number, look in enumerate(looks):
        so_far = looks[: number + 1]
        worse = look.golden > (1 + rise) * min(seen.golden for seen in so_far)
        still = look.proxy <= (1 + stall) * min(seen.proxy for seen in so_far)
        since = (look.step if since is None else since) if worse and still else None
    return since


def bend(
    steps: Sequence[int], values: Sequence[float], early: float = 0.4, threshold: float = 0.1, patience: int = 3
) -> int | None:
    """The step at which ``values`` leave their power law ``c * step**-b`` upwards for good; None if they never do.

    A straight line is fitted to log value over log step on the first ``early`` share of the points (step 0 is left out;
    the points of a warm-up should be). A bend are ``patience`` points in a row that lie more than ``threshold`` above
    it, in log units. Training on ever new text follows the line, training on a fixed set leaves it. A learning rate
    that falls changes the law too, so runs to be compared need one schedule.
    """
    points = [(math.log(s), math.log(v), s) for s, v in zip(steps, values, strict=True) if s > 0 and v > 0]
    require(0 < early < 1 and patience >= 1, f"bend: needs 0 < early < 1 and patience >= 1, not {early} and {patience}")
    count = max(3, round(early * len(points)))
    if len(points) < count + patience:
        return None
    slope, height = _line(points[:count])
    above = [y - (slope * x + height) > threshold for x, y, _ in points]
    for place in range(count, len(points) - patience + 1):
        if all(above[place : place + patience]):
            return points[place][2]
    return None


def _line(points: Sequence[tuple[float, float, int]]) -> tuple[float, float]:
    """Slope and height of the least-squares line."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((a - x) ** 2 for a in xs)
    slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / spread if spread else 0.0
    return slope, y - slope * x
