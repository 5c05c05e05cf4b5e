"""From a running stage to a checkpoint and back, so that what follows is the same bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from limbeck.core.checkpoint import (
    PER_STEP,
    Checkpoints,
    check_same,
    gathered,
    load_optimizer,
    load_weights,
    named_weights,
    whole,
)
from limbeck.core.feed import Feed
from limbeck.core.rng import random_state, seed_everything, set_random_state
from limbeck.core.stage import Stage, Stateful


@dataclass
class Progress:
    """How far a stage has come: optimizer steps, rows of all processes, seconds, and the last row of the log."""

    step: int = 0
    rows: int = 0
    seconds: float = 0.0
    row: dict[str, float] = field(default_factory=lambda: {"loss": float("nan")})


def settings(stage: Stage, world: int) -> dict[str, Any]:
    """What has to be the same for a checkpoint to be continued (shapes are compared with the weights themselves)."""
    optim = asdict(stage.optim)
    return {
        "trained names": list(stage.train),
        "steps": stage.steps,
        "seed": stage.seed,
        PER_STEP: stage.accumulate * world,
        "clip": stage.clip,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in optim.items()},
    }


class Keeper:
    """Saves and loads all that ``fit`` needs to continue ``stage`` in ``folder``; without a folder, nothing."""

    def __init__(self, stage: Stage, folder: Path | None, accelerator: Accelerator, feed: Feed) -> None:
        self.stage, self.accelerator, self.feed = stage, accelerator, feed
        self.files = Checkpoints(folder) if folder is not None else None
        called: list[Any] = [call for call in stage.after if isinstance(call, Stateful)]
        self.members: dict[str, Stateful] = {f"after {index}": call for index, call in enumerate(called)}
        self.members |= {f"state {name}": value for name, value in stage.state.items()}
        self.settings = settings(stage, accelerator.num_processes) | {"what has a memory": sorted(self.members)}

    def save(self, at: Progress, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint; every process has to call."""
        if self.files is None:
            return
        weights = {name: whole(value) for name, value in named_weights(self.stage.train).items()}
        memory = self._memory(at, optimizer)
        if self.accelerator.is_main_process:
            self.files.save(at.step, weights, memory)
        self.accelerator.wait_for_everyone()

    def _memory(self, at: Progress, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        alone, scaler = self.accelerator.num_processes == 1, self.accelerator.scaler
        finished = at.step == self.stage.steps
        return {
            "settings": self.settings,
            "progress": asdict(at),
            "feed": self.feed.state_dict(),
            "members": {name: member.state_dict() for name, member in self.members.items()},
            "random": [random_state()] if alone else gather_object([random_state()]),
            "optimizer": None if finished else gathered(optimizer.state_dict()),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load(self, optimizer: torch.optim.Optimizer | None, finished: bool = False) -> Progress | None:
        """Continue from the newest checkpoint, if there is one; of a finished stage no optimizer is wanted."""
        if self.files is None:
            return None
        if self.accelerator.is_main_process:
            self.files.tidy()
        self.accelerator.wait_for_everyone()
        found = self.files.load()
        if found is None:
            return None
        path, weights, memory = found
        check_same(memory["settings"], self.settings, path, finished)
        load_weights(self.stage.train, weights, str(path))
        if not finished or isinstance(self.stage.stream, Stateful | Iterator):
            self.feed.load_state_dict(memory["feed"])
        for name, member in self.members.items():
            member.load_state_dict(memory["members"][name])
        if optimizer is not None and memory["optimizer"] is not None:
            load_optimizer(optimizer, memory["optimizer"])
        if self.accelerator.scaler is not None and memory["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(memory["scaler"])
        self._continue_random(memory["random"], memory["progress"]["step"])
        return Progress(**memory["progress"])

    def _continue_random(self, states: list[dict[str, Any]], step: int) -> None:
        """Each process continues its own random state; if there are more or fewer of them now, new ones are seeded."""
        rank = self.accelerator.process_index
        if len(states) == self.accelerator.num_processes:
            set_random_state(states[rank])
        else:
            seed_everything(self.stage.seed + step, rank)
