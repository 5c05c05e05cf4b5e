"""Every objective: the gradient does not depend on how a step is cut, in micro-batches, by DDP or by FSDP2."""

from __future__ import annotations

import inspect
import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
from gradients_child import CASES, FLAT, MODES, data, gradients, parts
from torch import Tensor
from two_processes import run_twice

from limbeck import objectives
from limbeck.core.save import load_tensors

NEVER_TRAINED = {"verdicts"}
ARGUMENTS = ["student", "teacher", "batch", "clock"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The gradients of all cases on two processes that run all of them."""
    out = tmp_path_factory.mktemp("pair")
    run_twice(Path(__file__).with_name("gradients_child.py"), out)
    return load_tensors(out / "gradients.safetensors")[0]


def listed() -> set[str]:
    """All that the package offers as an objective: what returns one, and classes that are called as one."""
    found = set()
    for module in pkgutil.iter_modules(objectives.__path__, "limbeck.objectives."):
        for name, thing in vars(import_module(module.name)).items():
            if name.startswith("_") or getattr(thing, "__module__", "") != module.name:
                continue
            if inspect.isfunction(thing) and thing.__annotations__.get("return") == "Objective":
                found.add(name)
            kinds = thing.__mro__ if inspect.isclass(thing) else ()
            call = next((vars(kind)["__call__"] for kind in kinds if "__call__" in vars(kind)), None)
            if call and list(inspect.signature(call).parameters)[1:] == ARGUMENTS:
                found.add(name)
    return found


def test_every_objective_of_the_package_has_a_case() -> None:
    assert {"soft", "Layers", "over_members"} <= listed()
    assert listed() - NEVER_TRAINED == set(CASES), "tests/objectives/gradients_child.py needs a case for each objective"


def test_the_rows_count_unevenly() -> None:
    for name in ("answer", "aligned", "labelled"):
        counts = [int(part[name].sum()) for part in parts(4)]
        assert counts[1] == 0 < counts[0] < counts[2] + counts[3], "an empty micro-batch, and a process with more"
    assert int(data()["aligned"].sum()) == int(data()["teacher_aligned"].sum())


@cache
def expected(name: str) -> dict[str, Tensor]:
    """One process: all rows at once, or as micro-batches where an objective compares the rows of a batch."""
    return gradients(name, 1 if FLAT[name].alone else 4)


def same(found: dict[str, Tensor], name: str) -> None:
    assert any(value.abs().max() > 1e-4 for value in expected(name).values()), "nothing learns"
    for key, value in expected(name).items():
        torch.testing.assert_close(found[key], value, atol=1e-7, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", [name for name, case in FLAT.items() if case.alone])
def test_micro_batches_add_up_to_the_whole(name: str) -> None:
    same(gradients(name, 4), name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FLAT)
def test_two_processes_are_one(pair: dict[str, Tensor], name: str, mode: str) -> None:
    start = f"{mode}/{name}/"
    same({key.removeprefix(start): value for key, value in pair.items() if key.startswith(start)}, name)
