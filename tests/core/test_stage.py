"""The description of a stage: schedules, refusals, the small tools beside it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.stage import Optim, Stage, Stateful, check_trainable, distill_step, every, freeze
from limbeck.core.terms import Clock, Terms, per


def a_stage(**changes: Any) -> Stage:
    net = nn.Linear(2, 2)
    stage = Stage("kl", lambda batch, clock: Terms(), {"student": net}, [], 10)
    return replace(stage, **changes)


def test_linear_rate_warms_up_then_falls_to_the_end() -> None:
    optim = Optim(lr=1.0, warmup=4)
    rates = [optim.lr_at(step, 12) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([(12 - step) / 8 for step in range(4, 12)])


def test_cosine_rate() -> None:
    optim = Optim(lr=2.0, schedule="cosine", warmup=0.2)
    rates = [optim.lr_at(step, 10) for step in range(10)]
    assert rates[:2] == [1.0, 2.0]
    assert rates[2:] == pytest.approx([1 + math.cos(math.pi * (step - 2) / 8) for step in range(2, 10)])


def test_constant_rate() -> None:
    assert [Optim(lr=0.5, schedule="constant").lr_at(step, 3) for step in range(3)] == [0.5] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "name of its folder"),
        ({"name": ""}, "name of its folder"),
        ({"name": ".."}, "name of its folder"),
        ({"steps": -1}, "steps must be at least 0, but is -1"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"save_every": 0}, "save_every must be at least 1"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"optim": Optim(groups={"studnet": 2.0})}, "did you mean 'student'"),
        ({"state": {"pace": 3}}, "state 'pace' has no state_dict"),
    ],
)
def test_a_wrong_stage_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        a_stage(**changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"lr": -1.0}, "lr: expected a number >= 0"),
        ({"lr": math.nan}, "lr: expected a number >= 0"),
        ({"warmup": -1}, "warmup"),
    ],
)
def test_wrong_optimizer_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        Optim(**settings)


def test_nothing_to_train_and_frozen_that_trains_are_refused() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(LimbeckError, match="nothing to train, because no parameter of student"):
        check_trainable(a_stage(train={"student": freeze(nn.Linear(2, 2))}))
    with pytest.raises(LimbeckError, match="nothing to train, because no parameter of an empty train"):
        check_trainable(a_stage(train={}))
    with pytest.raises(LimbeckError, match="frozen 'teacher' shares parameters with 'student'"):
        check_trainable(a_stage(train={"student": net}, frozen={"teacher": nn.Sequential(net)}))


def test_repr_is_readable() -> None:
    text = repr(a_stage(frozen={"teacher": nn.Linear(100, 100)}))
    assert "student" in text
    assert "10,100" in text
    assert "Linear" not in text
    assert len(text) < 500


def test_distill_step_gives_the_teacher_no_gradient() -> None:
    student, teacher = nn.Linear(2, 3), nn.Linear(2, 3)
    heard = {}

    def objective(s: Signals, t: Signals, batch: Any, clock: Clock) -> Terms:
        heard.update(student=s.logits, teacher=t.logits)
        return per("row", (s.need("logits") - t.need("logits")).sum(-1))

    step = distill_step(lambda b: Signals(logits=student(b["x"])), lambda b: Signals(logits=teacher(b["x"])), objective)
    step({"x": torch.randn(4, 2)}, Clock(0, 1))["loss"].sum.backward()
    assert heard["student"].requires_grad
    assert not heard["teacher"].requires_grad
    assert student.weight.grad is not None
    assert teacher.weight.grad is None


def test_every_counts_steps_and_keeps_the_memory_of_what_it_calls() -> None:
    class Memory:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def __call__(self, logs: Any, clock: Clock) -> None:
            self.steps.append(clock.step)

        def state_dict(self) -> dict[str, Any]:
            return {"steps": list(self.steps)}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.steps = state["steps"]

    memory = Memory()
    call = every(3, memory)
    for step in range(1, 10):
        call({}, Clock(step, 9))
    assert memory.steps == [3, 6, 9]
    fresh = Memory()
    again = every(3, fresh)
    assert isinstance(call, Stateful)
    assert isinstance(again, Stateful)
    again.load_state_dict(call.state_dict())
    assert fresh.steps == [3, 6, 9]
    talking = every(2, lambda logs, clock: {"seen": float(clock.step)})
    assert [talking({}, Clock(step, 4)) for step in range(1, 5)] == [None, {"seen": 2.0}, None, {"seen": 4.0}]
    forgetful = every(1, lambda logs, clock: None)
    assert isinstance(forgetful, Stateful)
    assert forgetful.state_dict() == {}
    with pytest.raises(LimbeckError, match="period of at least 1"):
        every(0, memory)


def test_freeze() -> None:
    module = freeze(nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1)))
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
