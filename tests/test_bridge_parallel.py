"""Two processes inside transformers' Trainer, with accumulation, take the step that fit takes on the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from test_bridge import GOAL, llama, with_fit

from limbeck.core.save import load_tensors


def test_two_processes_are_one(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, str(Path(__file__).with_name("bridge_child.py")), str(tmp_path)]
    both = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    came, _ = load_tensors(tmp_path / "weights.safetensors")
    expected, start = with_fit(GOAL), llama(0).state_dict()
    for name, value in came.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)
    assert any((came[name] - start[name]).abs().max() > 1e-3 for name in came)
