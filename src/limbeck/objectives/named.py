"""Objectives are closures; this gives them a name that prints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective
from limbeck.core.terms import Clock, Terms


class Named:
    """An objective that prints as the call that made it, such as ``soft(forward_kl, temperature=2.0, on='answer')``."""

    def __init__(self, objective: Objective, text: str) -> None:
        self.objective, self.text = objective, text

    def __call__(self, student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        """Terms of one micro-batch."""
        return self.objective(student, teacher, batch, clock)

    def __repr__(self) -> str:
        return self.text


def named(name: str, *parts: Any, **settings: Any) -> Callable[[Objective], Named]:
    """Decorator: the objective prints as ``name(parts, settings)``; settings that are None are left out."""
    return lambda objective: Named(objective, called(name, *parts, **settings))


def called(name: str, *parts: Any, **settings: Any) -> str:
    """``name(parts, settings)`` as a reader would write it; settings that are None are left out."""
    shown = [spoken(part) for part in parts]
    shown += [f"{key}={spoken(value)}" for key, value in settings.items() if value is not None]
    return f"{name}({', '.join(shown)})"


def spoken(value: Any) -> str:
    """``value`` as a reader would write it: functions by name, partials with their settings, modules by class."""
    if isinstance(value, partial):
        settings = "".join(f", {key}={spoken(setting)}" for key, setting in value.keywords.items())
        return f"partial({spoken(value.func)}{settings})"
    if isinstance(value, nn.Module):
        return type(value).__name__
    return getattr(value, "__name__", None) or repr(value)


def unit(batch: Batch, on: str) -> Tensor:
    """The boolean mask ``batch[on]`` that an objective is averaged over."""
    if on not in batch:
        raise LimbeckError(f"an objective is averaged over {on!r}, but the batch holds only {sorted(batch)}")
    return batch[on].bool()
