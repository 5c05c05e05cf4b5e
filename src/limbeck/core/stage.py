"""A stage: who learns, from what, on which data, for how long. ``fit`` does the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from limbeck.core.batch import Batch
from limbeck.core.check import one_of, require
from limbeck.core.signals import Signals, Source
from limbeck.core.terms import Clock, Terms

Step = Callable[[Batch, Clock], Terms]
Objective = Callable[[Signals, Signals, Batch, Clock], Terms]
After = Callable[[Mapping[str, float], Clock], Mapping[str, float] | None]

SCHEDULES = ("linear", "cosine", "constant")
Module = TypeVar("Module", bound=nn.Module)


@runtime_checkable
class Stateful(Protocol):
    """Something whose memory is saved with a checkpoint: numbers, text, tensors, lists and dictionaries of these.

    A Stateful stream continues where it stood: ``iter(stream)`` yields the batch after the last one handed out, so a
    position must be moved on *before* the batch is yielded.
    """

    def state_dict(self) -> dict[str, Any]:
        """The memory."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Continue from a saved memory."""


@dataclass(frozen=True)
class Optim:
    """AdamW (arXiv 1711.05101) and its learning-rate schedule.

    ``warmup`` is a number of steps (>= 1) or a share of all steps (< 1). Weight decay spares vectors and scalars
    (biases, norms). ``groups`` multiplies the learning rate of single entries of ``Stage.train``.
    """

    lr: float = 1e-4
    schedule: str = "linear"
    warmup: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    eps: float = 1e-8
    groups: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of(self.schedule, SCHEDULES, "Optim.schedule")
        require(math.isfinite(self.lr) and self.lr >= 0, f"Optim.lr: expected a number >= 0, but got {self.lr}")
        require(self.warmup >= 0, f"Optim.warmup: expected steps or a share, both >= 0, but got {self.warmup}")

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of optimizer step ``step`` (0-based) of ``steps``, before the multipliers of ``groups``."""
        warm = round(self.warmup * steps) if self.warmup < 1 else round(self.warmup)
        if step < warm:
            return self.lr * (step + 1) / warm
        if self.schedule == "constant":
            return self.lr
        left = max(0.0, (steps - step) / max(1, steps - warm))
        return self.lr * (left if self.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left)))


@dataclass(frozen=True)
class Stage:
    """One training run, complete.

    ``step`` maps a batch to Terms. ``train`` names exactly what learns and is saved. ``stream`` yields micro-batches
    and is started again when it ends; each optimizer step takes ``accumulate`` of them per process. ``frozen`` modules
    are put on the device, in eval mode, without gradients. ``after`` is called once per optimizer step with its loss
    and the raw means of all terms; its clock counts the step just done, and numbers that it returns by name are logged
    with that step. ``state`` is saved with every checkpoint though not learned; Stateful members of ``after`` and a
    Stateful stream are saved by themselves. ``clip`` bounds the gradient norm. ``save_every`` and ``log_every`` count
    optimizer steps; by default a run is saved ten times, and at least every ten minutes.
    """

    name: str
    step: Step
    train: Mapping[str, nn.Module]
    stream: Iterable[Batch]
    steps: int
    optim: Optim = field(default_factory=Optim)
    accumulate: int = 1
    clip: float | None = 1.0
    after: Sequence[After] = ()
    state: Mapping[str, Stateful] = field(default_factory=dict)
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)
    seed: int = 0
    save_every: int | None = None
    log_every: int = 10

    def __post_init__(self) -> None:
        where = f"stage {self.name!r}"
        plain = self.name and self.name not in (".", "..") and not set(self.name) & set("/\\\0")
        require(plain, f"{where}: a stage's name is the name of its folder and may not hold a slash")
        for name, least in {"steps": 0, "accumulate": 1, "log_every": 1, "save_every": 1}.items():
            value = getattr(self, name)
            require(value is None or value >= least, f"{where}: {name} must be at least {least}, but is {value}")
        require(self.clip is None or self.clip > 0, f"{where}: clip must be above 0 or None, but is {self.clip}")
        for name in self.optim.groups:
            one_of(name, self.train, f"{where}: Optim.groups names what is not trained")
        for name, value in self.state.items():
            require(isinstance(value, Stateful), f"{where}: state {name!r} has no state_dict and load_state_dict")

    def __repr__(self) -> str:
        shown = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ("train", "frozen"):
                value = {name: f"{sum(p.numel() for p in module.parameters()):,}" for name, module in value.items()}
            elif item.name in ("step", "stream", "state"):
                value = getattr(value, "__name__", None) or type(value).__name__
            shown.append(f"{item.name}={value!r}" if item.name != "step" else f"step={value}")
        return f"Stage({', '.join(shown)})"


def stage_settings(cfg: Any) -> dict[str, Any]:
    """The fields of a ``Stage`` that every method takes from its configuration."""
    return {"accumulate": cfg.accumulate, "seed": cfg.seed, "save_every": cfg.save_every}


@dataclass(frozen=True)
class DistillStep:
    """Ordinary distillation: the student speaks, the teacher speaks without gradients, the objective compares."""

    student: Source
    teacher: Source
    objective: Objective

    def __call__(self, batch: Batch, clock: Clock) -> Terms:
        """Terms of one micro-batch."""
        with torch.no_grad():
            said = self.teacher(batch)
        return self.objective(self.student(batch), said, batch, clock)


def distill_step(student: Source, teacher: Source, objective: Objective) -> Step:
    """A step that compares ``student`` with ``teacher`` by ``objective``."""
    return DistillStep(student, teacher, objective)


@dataclass(frozen=True)
class Every:
    """Calls ``call`` after every ``period``-th optimizer step; remembers what ``call`` remembers."""

    period: int
    call: After

    def __call__(self, logs: Mapping[str, float], clock: Clock) -> Mapping[str, float] | None:
        """Call, if it is time."""
        return self.call(logs, clock) if clock.step % self.period == 0 else None

    def state_dict(self) -> dict[str, Any]:
        """The memory of the wrapped callback; empty if it has none."""
        return self.call.state_dict() if isinstance(self.call, Stateful) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hand the memory back."""
        if isinstance(self.call, Stateful):
            self.call.load_state_dict(state)


def every(period: int, after: After) -> After:
    """``after``, but only after optimizer steps ``period``, ``2 * period``, ..."""
    require(period >= 1, f"every: expected a period of at least 1 step, but got {period}")
    return Every(period, after)


def freeze(module: Module) -> Module:
    """``module`` in eval mode and without gradients (in place, and returned)."""
    return module.eval().requires_grad_(False)


def check_trainable(stage: Stage) -> None:
    """Refuse a stage with nothing to train, or one that trains what it calls frozen."""
    where = f"stage {stage.name!r}"
    trained = {id(p): name for name, module in stage.train.items() for p in module.parameters() if p.requires_grad}
    names = ", ".join(stage.train) or "an empty train"
    require(trained, f"{where}: nothing to train, because no parameter of {names} requires a gradient")
    for name, module in stage.frozen.items():
        shared = next((trained[id(p)] for p in module.parameters() if id(p) in trained), None)
        require(shared is None, f"{where}: frozen {name!r} shares parameters with {shared!r}, which is trained")
