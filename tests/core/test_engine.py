"""What fit asks of Accelerate: precision, accumulation, engines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from fit_child import shared_out

from limbeck.core import engine
from limbeck.core.check import LimbeckError
from limbeck.core.engine import check_accelerator, make_optimizer
from limbeck.core.fit import fit
from limbeck.core.stage import Optim


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate remembers its precision for the life of a process; a test that sets it cleans up."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_mixed_precision_is_accelerates(fresh_accelerate: None) -> None:
    seen: list[torch.dtype] = []
    stage, net = shared_out(1, 2)
    net.inside.register_forward_hook(lambda module, given, came: seen.append(came.dtype))
    fit(stage, accelerator=Accelerator(mixed_precision="bf16", cpu=True))
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in net.parameters())


def test_accelerates_own_accumulation_does_not_shrink_the_gradient() -> None:
    _, plain = given = shared_out(1, 2)
    fit(given[0])
    stage, net = shared_out(1, 2)
    fit(stage, accelerator=Accelerator(gradient_accumulation_steps=4))
    for name, value in plain.named_parameters():
        torch.testing.assert_close(dict(net.named_parameters())[name], value)


@pytest.mark.parametrize(("found", "cpu"), [(None, True), ("cuda", False)])
def test_accelerate_is_told_of_a_machine_without_an_accelerator(
    found: str | None, cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left alone, it takes each process of torchrun for the only one there."""
    told: dict[str, Any] = {}
    device = None if found is None else torch.device(found)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: device)
    monkeypatch.setattr(engine, "Accelerator", lambda **settings: told.update(settings))
    engine.make_accelerator(None, None)
    assert told["cpu"] is cpu


def test_one_accelerator_serves_stage_after_stage() -> None:
    accelerator = Accelerator()
    for _ in range(2):
        fit(shared_out(1, 2)[0], accelerator=accelerator)
        assert not accelerator._models
        assert not accelerator._optimizers


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.FSDP])
def test_engines_with_a_loop_of_their_own_are_refused(kind: DistributedType) -> None:
    accelerator: Any = SimpleNamespace(distributed_type=kind, is_fsdp2=False)
    with pytest.raises(LimbeckError, match=f"one process, DDP or FSDP2, but Accelerate is set to {kind.value}"):
        check_accelerator(accelerator)


def test_a_parameter_is_optimised_once() -> None:
    stage, net = shared_out(1, 2)
    tied = {"net": net, "again": net}
    groups = make_optimizer(replace(stage, train=tied, optim=Optim(weight_decay=0.1))).param_groups
    parameters = [p for group in groups for p in group["params"]]
    assert len(parameters) == len(set(parameters)) == len(list(net.parameters()))
    assert {group["weight_decay"]: {p.ndim for p in group["params"]} for group in groups} == {0.1: {2}, 0.0: {1}}
