"""Text by the student in two processes over gloo: each writes its own, together as one process would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rollout_child import stage

from limbeck.core.fit import fit
from limbeck.core.save import load_tensors


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pair")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    both = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("rollout_child.py")), str(out)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
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
