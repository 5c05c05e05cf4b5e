"""The contract passes for plain distillation, and each check catches the mistake it is there for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import contract
import pytest
import torch
from contract import CHECKS, Case, check_method, stages_of
from torch import nn

from limbeck.core.batch import Batch, rows
from limbeck.core.fit import fit
from limbeck.core.signals import Signals, Source
from limbeck.core.stage import Stage, distill_step
from limbeck.core.terms import Clock, Term, Terms, per


def speaks(module: nn.Module) -> Source:
    return lambda batch: Signals(logits=module(batch["x"]))


def squares(s: Signals, t: Signals, batch: Batch, clock: Clock) -> Terms:
    apart = (s.need("logits") - t.need("logits")).float() ** 2
    at_all = Term(apart.sum(-1)[batch["mask"]].sum(), "mask")
    return Terms(all=at_all, some=Term(apart.mean(-1)[batch["answer"]].sum(), "answer", 0.5))


def plain(seed: int) -> Stage:
    torch.manual_seed(seed)
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    stream = []
    for _ in range(3):
        x, mask = torch.randn(8, 5, 4), torch.rand(8, 5) < 0.6
        stream.append({"x": x, "mask": mask, "answer": mask & (torch.rand(8, 5) < 0.5)})
    step = distill_step(speaks(student), speaks(teacher), squares)
    return Stage("plain", step, {"student": student}, stream, 4, frozen={"teacher": teacher})


def test_plain_distillation_keeps_the_contract(tmp_path: Path) -> None:
    check_method(Case("plain", plain), tmp_path)


def by_itself(stage: Stage, least: int = 1) -> Stage:
    """Each micro-batch divides by its own count, as most published code does."""

    def step(batch: Batch, clock: Clock) -> Terms:
        said = stage.step(batch, clock)
        counts = {name: batch[term.unit].sum().clamp(min=least) for name, term in said.items()}
        return Terms({name: Term(t.sum / counts[name], "batch", t.weight) for name, t in said.items()})

    return replace(stage, step=step)


def by_nothing(stage: Stage) -> Stage:
    """The mean over no position at all."""
    return by_itself(stage, least=0)


class Forgetful:
    """A controller that is not Stateful, though the loss depends on it."""

    def __init__(self) -> None:
        self.weight = 1.0

    def __call__(self, logs: Mapping[str, float], clock: Clock) -> None:
        self.weight += 1.0


def forgetting(stage: Stage) -> Stage:
    pace = Forgetful()

    def step(batch: Batch, clock: Clock) -> Terms:
        said = stage.step(batch, clock)
        return Terms({name: Term(t.sum * pace.weight, t.unit) for name, t in said.items()} | {"all": said["all"]})

    return replace(stage, step=step, after=[pace])


def moving_teacher(stage: Stage) -> Stage:
    def step(batch: Batch, clock: Clock) -> Terms:
        with torch.no_grad():
            stage.frozen["teacher"].weight += 0.1
        return stage.step(batch, clock)

    return replace(stage, step=step)


def standing_student(stage: Stage) -> Stage:
    return replace(stage, train={**stage.train, "idle": nn.Linear(1, 1)})


def rising(stage: Stage) -> Stage:
    def step(batch: Batch, clock: Clock) -> Terms:
        said = stage.step(batch, clock)
        return Terms({name: Term(2 * t.sum.detach() - t.sum, t.unit) for name, t in said.items()})

    return replace(stage, step=step)


def silent(stage: Stage) -> Stage:
    """Signals are made up where nobody gave any."""

    def made_up(s: Signals, t: Signals, batch: Batch, clock: Clock) -> Terms:
        if s.logits is None:
            anything = next(iter(stage.train.values()))(batch["x"])
            return per("mask", anything)
        return squares(s, t, batch, clock)

    return replace(stage, step=replace(stage.step, objective=made_up))  # type: ignore[type-var]


def unseeded(stage: Stage) -> Stage:
    for module in stage.train.values():
        module.weight.data += torch.empty(()).normal_(generator=torch.Generator().manual_seed(torch.seed() % 2**31))
    return stage


def overflowing(stage: Stage) -> Stage:
    def step(batch: Batch, clock: Clock) -> Terms:
        said = stage.step(batch, clock)
        half = next(iter(stage.train.values()))(batch["x"]).dtype == torch.bfloat16
        return Terms({name: Term(t.sum / (0.0 if half else 1.0), t.unit) for name, t in said.items()})

    return replace(stage, step=step)


BROKEN: dict[str, tuple[Callable[[Stage], Stage], str]] = {
    "learns": (rising, "loss went from"),
    "only_train_moves": (moving_teacher, "frozen: teacher/weight differs"),
    "micro_batches": (by_itself, "depends on the number of micro-batches"),
    "resumes": (forgetting, "resumed: student/"),
    "masked": (by_nothing, "is nan"),
    "missing_signal": (silent, "DID NOT RAISE"),
    "same_numbers": (unseeded, "before training: student/weight differs"),
    "half_precision": (overflowing, "is inf"),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_each_check_catches_its_mistake(tmp_path: Path, check: Callable[[Case, Path], None]) -> None:
    spoil, message = BROKEN[check.__name__]
    with pytest.raises((Exception, pytest.fail.Exception), match=message):
        check(Case("broken", lambda seed: spoil(plain(seed))), tmp_path)


def test_an_entry_of_train_that_stands_still_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="idle did not move"):
        contract.only_train_moves(Case("idle", lambda seed: standing_student(plain(seed))), tmp_path)


def test_the_stages_of_a_recipe_are_found_without_training() -> None:
    def recipe() -> dict[str, float]:
        fit(plain(0), None)
        return fit(replace(plain(1), name="second"), None)

    stages = stages_of(sys.modules[__name__], recipe)
    assert [stage.name for stage in stages] == ["plain", "second"]
    assert rows(next(iter(stages[0].stream))) == 8


def test_a_step_of_its_own_must_say_what_is_missing(tmp_path: Path) -> None:
    def build(seed: int) -> Stage:
        stage = plain(seed)
        return replace(stage, step=lambda batch, clock: stage.step(batch, clock))

    with pytest.raises(AssertionError, match="must say what is missing"):
        contract.missing_signal(Case("own", build), tmp_path)

    def lacking(seed: int) -> Stage:
        stage = plain(seed)
        step: Any = stage.step
        return replace(stage, step=lambda b, c: replace(step, student=lambda b: Signals())(b, c))

    contract.missing_signal(Case("own", build, missing=lacking), tmp_path)
