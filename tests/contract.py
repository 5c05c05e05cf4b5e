"""What every method has to keep, checked for any stage it trains. One line per method: a ``Case``.

    CASES = [Case("minilm", build)]

    @pytest.mark.parametrize("check", CHECKS)
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_contract(case, check, tmp_path):
        check(case, tmp_path)

``build(seed)`` makes a fresh Stage: new modules, new stream, all from the seed, without dropout, batches of 8 rows. A
recipe that calls ``fit`` itself is turned into its stages by ``stages_of(module, recipe)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from limbeck.core.batch import IGNORE, Batch, rows
from limbeck.core.check import LimbeckError
from limbeck.core.checkpoint import named_weights
from limbeck.core.fit import fit
from limbeck.core.save import pack
from limbeck.core.signals import Signals
from limbeck.core.stage import DistillStep, Optim, Stage, Stateful
from limbeck.core.terms import Clock

# with a large eps AdamW's step grows with the gradient, so that a gradient of the wrong size shows in the weights
SCALED = Optim(lr=0.1, eps=1.0, schedule="constant")


@dataclass(frozen=True)
class Case:
    """A stage to check, and the few things in which methods differ."""

    name: str
    build: Callable[[int], Stage]
    falls: str = "loss"  # the value in the log that has to fall
    steps: int = 30  # in so many steps
    lr: float = 1e-2  # at this rate
    micro: bool = True  # False for methods that compare the rows of a batch with each other
    blank: tuple[str, ...] | None = None  # masks to empty; None: every boolean tensor of the batch
    missing: Callable[[int], Stage] | None = None  # a stage whose source lacks a signal; not needed with distill_step

    def __str__(self) -> str:
        return self.name


class Stop(BaseException):
    """Ends a run where it stands."""


def stages_of(module: ModuleType, recipe: Callable[[], Any]) -> list[Stage]:
    """The stages that ``recipe`` hands to the ``fit`` that ``module`` has imported; nothing is trained."""
    stages: list[Stage] = []

    def recorded(stage: Stage, *rest: Any, **more: Any) -> dict[str, float]:
        stages.append(stage)
        return {"steps": stage.steps, "loss": 0.0, "seconds": 0.0, "rows": 0}

    with mock.patch.object(module, "fit", recorded):
        recipe()
    return stages


def first(stream: Iterable[Batch], number: int) -> list[Batch]:
    batches = list(islice(stream, number))
    assert batches, "the stream is empty"
    return batches


def trained(stage: Stage) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in named_weights(stage.train).items()}


def memory(stage: Stage) -> Any:
    """What the Stateful members of a stage remember, in a form that can be compared."""
    members = [*stage.state.values(), *(call for call in stage.after if isinstance(call, Stateful))]
    tensors: dict[str, Tensor] = {}
    words = pack([member.state_dict() for member in members], tensors)
    return words, {name: value.tolist() for name, value in tensors.items()}


def assert_equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor], what: str) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), f"{what}: {name} differs"


def learns(case: Case, folder: Path) -> None:
    """The objective falls on two batches seen again and again."""
    stage, seen = case.build(0), list[float]()

    def hear(logs: Mapping[str, float], clock: Clock) -> None:
        seen.append(logs[case.falls])

    batches, optim = first(stage.stream, 2), replace(stage.optim, lr=case.lr, groups={})
    fit(replace(stage, stream=batches, steps=case.steps, optim=optim, after=[*stage.after, hear]))
    start, end = sum(seen[:4]) / 4, sum(seen[-4:]) / 4
    assert end < start - 0.01 * abs(start), f"{case.falls} went from {start:.4g} to {end:.4g}"


def only_train_moves(case: Case, folder: Path) -> None:
    """Every entry of train moves; what is frozen is bit-identical and without gradients."""
    stage = case.build(0)
    before = trained(stage)
    kept = {name: value.detach().clone() for name, value in named_weights(stage.frozen).items()}
    fit(replace(stage, stream=first(stage.stream, 2), steps=2, optim=replace(stage.optim, lr=case.lr)))
    assert_equal({name: value.detach() for name, value in named_weights(stage.frozen).items()}, kept, "frozen")
    for module in stage.frozen.values():
        assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    after = trained(stage)
    for part in stage.train:
        names = [name for name in before if name.startswith(f"{part}/")]
        assert any(not torch.equal(before[name], after[name]) for name in names), f"{part} did not move"


def micro_batches(case: Case, folder: Path) -> None:
    """One batch as 1, 2 or 8 micro-batches moves the weights alike."""
    if not case.micro:
        return
    ends = []
    for number in (1, 2, 8):
        stage = case.build(0)
        (batch,) = first(stage.stream, 1)
        assert rows(batch) == 8, f"a case has batches of 8 rows, but {case.name} has {rows(batch)}"
        chunks = {name: value.chunk(number) for name, value in batch.items()}
        parts = [{name: value[index] for name, value in chunks.items()} for index in range(number)]
        start = trained(stage)
        fit(replace(stage, stream=parts, steps=1, accumulate=number, optim=SCALED, clip=None))
        ends.append(trained(stage))
        assert any(not torch.equal(start[name], ends[-1][name]) for name in start)
    for other in ends[1:]:
        for name, value in ends[0].items():
            message = f"{name} depends on the number of micro-batches"
            torch.testing.assert_close(other[name], value, atol=2e-6, rtol=1e-4, msg=lambda m, t=message: f"{t}: {m}")


def resumes(case: Case, folder: Path) -> None:
    """Stopped and resumed equals straight, bit for bit, with controllers and streams."""

    def stop(logs: Mapping[str, float], clock: Clock) -> None:
        if clock.step == 5:
            raise Stop

    short = {"steps": 7, "save_every": 3, "name": "stage"}
    straight = replace(case.build(0), **short)
    fit(straight, folder / "straight")
    stopped = case.build(0)
    with pytest.raises(Stop):
        fit(replace(stopped, **short, after=[*stopped.after, stop]), folder / "stopped")
    resumed = replace(case.build(0), **short)
    with torch.no_grad():
        for module in resumed.train.values():
            for parameter in module.parameters():
                parameter.add_(1.0)  # what resuming has to undo
    fit(resumed, folder / "stopped")
    assert_equal(trained(straight), trained(resumed), "resumed")
    assert memory(straight) == memory(resumed)


def masked(case: Case, folder: Path) -> None:
    """A batch in which nothing counts is finite and leaves the weights finite."""
    stage = case.build(0)
    batches = first(stage.stream, 2)
    for batch in batches:
        booleans = [name for name, value in batch.items() if value.dtype == torch.bool]
        for name in booleans if case.blank is None else case.blank:
            batch[name] = torch.zeros_like(batch[name])
        if "targets" in batch:
            batch["targets"] = torch.full_like(batch["targets"], IGNORE)
    assert math.isfinite(fit(replace(stage, stream=batches, steps=2))["loss"])
    assert all(torch.isfinite(value).all() for value in trained(stage).values())


def missing_signal(case: Case, folder: Path) -> None:
    """A signal that nobody recorded is named, together with what to ask the source for."""
    stage = (case.missing or case.build)(0)
    if case.missing is None:
        assert isinstance(stage.step, DistillStep), f"{case.name} has a step of its own and must say what is missing"
        stage = replace(stage, step=replace(stage.step, student=lambda b: Signals(), teacher=lambda b: Signals()))
    with pytest.raises(LimbeckError, match=r"needs the signal '\w+'.*ask the source"):
        fit(replace(stage, steps=1))


def same_numbers(case: Case, folder: Path) -> None:
    """The same seed gives the same weights."""
    one, two = replace(case.build(3), steps=3), replace(case.build(3), steps=3)
    assert_equal(trained(one), trained(two), "before training")
    fit(one)
    fit(two)
    assert_equal(trained(one), trained(two), "the same seed")


def half_precision(case: Case, folder: Path) -> None:
    """Under bf16 autocast loss and weights are finite."""
    stage = replace(case.build(0), steps=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert math.isfinite(fit(stage)["loss"])
    assert all(torch.isfinite(value).all() for value in trained(stage).values())


CHECKS = (
    learns,
    only_train_moves,
    micro_batches,
    resumes,
    masked,
    missing_signal,
    same_numbers,
    half_precision,
)


def check_method(case: Case, folder: Path) -> None:
    """All checks, one after the other."""
    for check in CHECKS:
        check(case, folder / check.__name__)
