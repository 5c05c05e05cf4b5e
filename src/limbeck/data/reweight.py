"""Weights of domains that follow the student: more of the text in which it is farthest behind its teacher.

``DomainWeights`` is a callback for any stage whose stream is a ``Mixture`` or a ``Blend``::

    stream = Blend({"news": ..., "code": ...}, batch=8)
    weights = DomainWeights(stream, DomainPerplexity(says, taught, held_out), period=100)
    fit(Stage(..., stream=stream, after=[weights]))

Shares live in log space: the ratio of an untrained student's perplexity to its teacher's may be in the thousands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from limbeck.core.check import require
from limbeck.core.terms import Clock
from limbeck.data.rollout import everyone

Look = Callable[[], Mapping[str, tuple[float, float]]]
"""Asks both models about texts that nobody trains on: domain -> perplexity of the student, of the teacher."""

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Logarithms of the shares n and ratios of perplexities n, student over teacher -> logarithms of the new shares n."""


class Weighted(Protocol):
    """A stream drawn from several, such as ``data.mixture.Mixture`` or ``Blend``."""

    weights: Any


def discrepancy(log_shares: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """softmax(ratios), whatever the shares were: DDK without its smoothing (2407.16154)."""
    return _log_softmax(ratios)


def smoothed(alpha: float = 0.5) -> Rule:
    """alpha * psi + (1 - alpha) / n with psi in proportion to share * exp(ratio) (2407.16154).

    Every share then lies from (1 - alpha) / n to alpha + (1 - alpha) / n.
    """
    require(0 <= alpha <= 1, f"the smoothing's alpha must lie from 0 to 1, but is {alpha}")

    def rule(log_shares: np.ndarray, ratios: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            mine, even = np.log(alpha), np.log((1 - alpha) / len(ratios))
        return np.logaddexp(mine + _log_softmax(log_shares + ratios), even)

    return rule


SMOOTHED = smoothed()


def _log_softmax(values: np.ndarray) -> np.ndarray:
    top = values - values.max()
    return top - np.log(np.exp(top).sum())


class DomainWeights:
    """Sets ``stream.weights`` every ``period`` optimizer steps by what ``look`` finds; a callback for ``Stage.after``.

    The first look, after step 1, is where the shares start, softmax(ratios): it does not touch the stream, which goes
    on as it was set up until the next one (the paper's first interval is the natural mixture). ``rule`` makes new
    shares of old ones; None leaves the weights alone, for a run that is only to be watched. The log gets
    ``perplexity.<domain>``, ``teacher_perplexity.<domain>`` and ``share.<domain>``, the stream's share from then on;
    ``looks`` keeps the same. With several processes the first one's numbers hold for all.
    """

    def __init__(self, stream: Weighted, look: Look, period: int, rule: Rule | None = SMOOTHED) -> None:
        require(period >= 1, f"DomainWeights: expected a period of at least 1 step, but got {period}")
        self.stream, self.look, self.period, self.rule = stream, look, period, rule
        self.log_shares: dict[str, float] = {}
        self.looks: list[dict[str, float]] = []

    def __call__(self, logs: Mapping[str, float], clock: Clock) -> Mapping[str, float] | None:
        """Look and move, if it is time."""
        if self.log_shares and clock.step % self.period:
            return None
        said = everyone(dict(self.look()))[0]
        self._hear(said)
        found = {f"perplexity.{name}": student for name, (student, _) in said.items()}
        found |= {f"teacher_perplexity.{name}": teacher for name, (_, teacher) in said.items()}
        found |= {f"share.{name}": share for name, share in self.stream.weights.items()}
        self.looks.append({"step": clock.step, **found})
        return found

    def _hear(self, said: Mapping[str, tuple[float, float]]) -> None:
        """Move the shares, or start them."""
        require(
            set(said) == set(self.stream.weights),
            f"perplexities are of {sorted(said)}, but the stream's domains are {sorted(self.stream.weights)}",
        )
        for name, pair in said.items():
            for value, whose in zip(pair, ("student", "teacher"), strict=True):
                require(
                    math.isfinite(value) and value > 0,
                    f"domain {name!r}: the {whose}'s perplexity is {value}; look at the domain's text and the {whose}",
                )
        ratios = np.array([student / teacher for student, teacher in said.values()])
        if not self.log_shares:
            self.log_shares = dict(zip(said, discrepancy(ratios, ratios).tolist(), strict=True))
        elif self.rule is not None:
            new = self.rule(np.array([self.log_shares[name] for name in said]), ratios)
            self.log_shares = dict(zip(said, new.tolist(), strict=True))
            self.stream.weights = {name: math.exp(value) for name, value in self.log_shares.items()}

    def state_dict(self) -> dict[str, Any]:
        """The shares' logarithms, which a share that is 0 as a number still has, and all looks so far."""
        return {"log_shares": dict(self.log_shares), "looks": [dict(look) for look in self.looks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue; the stream keeps its weights itself."""
        self.log_shares, self.looks = dict(state["log_shares"]), [dict(look) for look in state["looks"]]
