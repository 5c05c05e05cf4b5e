"""Text by the student in two processes over gloo: each writes its own, together as one process would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rollout_child import stage
from two_processes import run_twice

from limbeck.core.fit import fit
from limbeck.core.save import load_tensors


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pair")
    run_twice(Path(__file__).with_name("rollout_child.py"), out)
    return out


def weights(pair: Path, name: str) -> dict[str, torch.Tensor]:
    return load_tensors(pair / f"{name}.safetensors")[0]


def test_two_processes_write_what_one_process_writes(pair: Path) -> None:
    alone = stage(kept=False, accumulate=2)
    before = {name: value.detach().clone() for name, value in alone.train["student"].named_parameters()}
    fit(alone)
    came = weights(pair, "plain-straight")
    for name, value in alone.train["student"].named_parameters():
        torch.testing.assert_close(came[name], value.detach(), atol=1e-5, rtol=0)
    assert any((came[name] - before[name]).abs().max() > 1e-3 for name in before)


@pytest.mark.parametrize("name", ["plain", "kept"])
def test_each_process_continues_with_its_own_texts(pair: Path, name: str) -> None:
    straight, resumed = weights(pair, f"{name}-straight"), weights(pair, f"{name}-resumed")
    assert straight.keys() == resumed.keys()
    for key, value in straight.items():
        assert torch.equal(value, resumed[key]), key


def test_sharded_weights_are_refused(pair: Path) -> None:
    assert "FSDP2 has sharded them; train on one process or under DDP" in json.loads((pair / "fsdp.json").read_text())
