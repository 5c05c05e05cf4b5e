"""Two processes inside transformers' Trainer, with accumulation, take the step that fit takes on the whole batch."""

from __future__ import annotations

from pathlib import Path

import torch
from test_bridge import GOAL, llama, with_fit
from two_processes import run_twice

from limbeck.core.save import load_tensors


def test_two_processes_are_one(tmp_path: Path) -> None:
    run_twice(Path(__file__).with_name("bridge_child.py"), tmp_path)
    came, _ = load_tensors(tmp_path / "weights.safetensors")
    expected, start = with_fit(GOAL), llama(0).state_dict()
    for name, value in came.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)
    assert any((came[name] - start[name]).abs().max() > 1e-3 for name in came)
