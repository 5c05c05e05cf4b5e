"""Asking again: later and later, not before the server says, and not for ever."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from threading import Event, Lock
from typing import TypeVar

from limbeck.core.check import require
from limbeck.sources.replies import Fault

FIRST, LONGEST = 0.5, 60.0  # seconds: the first wait after a failure, which doubles, and the longest
UNTRUE = 2  # times that a reply which cannot be true is asked for
NOTICE = 30.0  # seconds between two lines about failures
T = TypeVar("T")


class Stopped(Exception):
    """Ends a thread whose run is over."""


class Patience:
    """Repeats calls to ``who`` that end in a ``Fault``, ``attempts`` times each; threads share one.

    ``answered`` and ``failed`` count calls.
    """

    def __init__(self, who: str, attempts: int) -> None:
        require(attempts >= 1, f"--attempts {attempts}: expected at least 1")
        self.who, self.attempts = who, attempts
        self.answered = self.failed = 0
        self._lock, self._open_at, self._told = Lock(), 0.0, -NOTICE

    def until_answered(
        self,
        call: Callable[[], T],
        what: str,
        stop: Event,
        hold: Callable[[float], None] = lambda seconds: None,
        attempts: int | None = None,
    ) -> T:
        """What ``call`` gives in the end; ``hold`` hears how many seconds pass before it is called again.

        A server that is only busy is waited for as long as it answers anybody. Raises ``LimbeckError``, which says what
        the call was to do (``what``), after the last attempt, and ``Stopped`` once ``stop`` is set.
        """
        failures, most, answered = 0, attempts or self.attempts, self.answered
        while True:
            pause(stop, self.closed())
            try:
                found = call()
            except Fault as fault:
                failures = 1 if fault.busy and self.answered > answered else failures + 1
                answered, limit = self.answered, min(UNTRUE, most) if fault.untrue else most
                require(failures < limit, f"{self.who}: {fault}; gave up after {failures} attempts to {what}")
                seconds = self._wait(fault, failures)
                hold(seconds)
                pause(stop, seconds)
            else:
                with self._lock:
                    self.answered += 1
                return found

    def closed(self) -> float:
        """Seconds for which the server has asked everybody to wait."""
        return max(self._open_at - time.monotonic(), 0.0)

    def _wait(self, fault: Fault, failures: int) -> float:
        """Seconds until the next attempt, with some chance in them, so that not all come back at once."""
        seconds = min(LONGEST, FIRST * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)
        with self._lock:
            self.failed += 1
            now = time.monotonic()
            if fault.wait is not None:
                self._open_at = max(self._open_at, now + fault.wait)
                seconds = fault.wait * random.uniform(1.0, 1.1)
            if now - self._told >= NOTICE:
                self._told = now
                print(f"limbeck: {self.who}: {fault}; asking again in {seconds:.1f} s", file=sys.stderr, flush=True)
        return seconds


def pause(stop: Event, seconds: float) -> None:
    """Wait; raises ``Stopped`` as soon as ``stop`` is set."""
    if stop.wait(max(seconds, 0.0)):
        raise Stopped
