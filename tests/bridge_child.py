"""One of two processes that train inside transformers' Trainer; see test_bridge_parallel."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from test_bridge import GOAL, with_trainer

from limbeck.core.save import save_tensors

if __name__ == "__main__":
    out = Path(sys.argv[1])
    trainer = with_trainer(out / "trainer", 2, GOAL, processes=2)
    assert trainer.accelerator.num_processes == 2
    if os.environ["RANK"] == "0":
        weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
        save_tensors(out / "weights.safetensors", weights)
