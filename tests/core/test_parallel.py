"""Two processes over gloo train as one process with twice the batch does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fit_child import shared_out
from two_processes import run_twice

from limbeck.core.fit import fit
from limbeck.core.save import load_tensors

STEPS = 6


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left behind, first under DDP, then under FSDP2; each was stopped once and resumed."""
    out = tmp_path_factory.mktemp("pair")
    run_twice(Path(__file__).with_name("fit_child.py"), out, STEPS)
    return out


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_are_one_with_twice_the_batch(pair: Path, tmp_path: Path, mode: str) -> None:
    stage, net = shared_out(1, STEPS)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    fit(stage, tmp_path)
    came, _ = load_tensors(pair / f"{mode}.safetensors")
    for name, value in net.named_parameters():
        torch.testing.assert_close(came[name], value.detach(), atol=1e-5, rtol=0)
    assert not torch.allclose(came["inside.weight"], before["inside.weight"], atol=1e-2)
    one, two = (
        [json.loads(line) for line in (folder / "toy" / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path, pair / mode)
    )
    assert [row["step"] for row in two] == list(range(1, STEPS + 1))
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "soft", "hard", "size", "grad_norm", "rows"):
            assert b[name] == pytest.approx(a[name], rel=1e-4)
