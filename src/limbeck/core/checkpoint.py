"""A checkpoint: one folder, named after its step, whole or absent.

``weights.safetensors`` every parameter and buffer of ``Stage.train`` as ``<train name>/<parameter>``;
``memory.safetensors`` and ``memory.json`` all else: optimizer, random state, stream position, Stateful members.
The previous checkpoint goes when the next one stands.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from limbeck.core.check import LimbeckError
from limbeck.core.save import load_tensors, pack, read_json, replace_dir, unpack, write_tensors, writing

FORMAT = 1
PER_STEP = "batches per optimizer step"


def whole(tensor: Tensor) -> Tensor:
    """The full tensor where a process holds a shard of it (every process must ask)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def named_weights(train: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once: tied ones go under their first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, module in train.items():
        for key, value in module.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor):
                found.setdefault(id(value), (f"{name}/{key}", value))
    return dict(found.values())


def load_weights(train: Mapping[str, nn.Module], saved: Mapping[str, Tensor], where: str) -> None:
    """Copy ``saved`` into the modules in place; names, shapes or dtypes that differ are refused."""
    targets = named_weights(train)
    strange = sorted(set(targets) ^ set(saved))
    if strange:
        side = "the checkpoint" if strange[0] in saved else "the stage"
        raise LimbeckError(
            f"{where} belongs to other modules: only {side} has {strange[0]!r}; choose another out folder"
        )
    for name, target in targets.items():
        came, wanted = saved[name], target
        if came.shape != wanted.shape or came.dtype != wanted.dtype:
            raise LimbeckError(
                f"{where} belongs to other modules: {name!r} is {tuple(came.shape)} {came.dtype} there and "
                f"{tuple(wanted.shape)} {wanted.dtype} in the stage; choose another out folder"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(like(saved[name], target))


def like(value: Tensor, target: Tensor) -> Tensor:
    """``value`` on the device of ``target`` and, if that is sharded, sharded as it is."""
    if isinstance(target, DTensor):
        return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    return value.to(target.device)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimizer its saved state back, sharded as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entry in state["state"].items():
        target = parameters[index]
        if isinstance(target, DTensor):
            entry.update({key: like(value, target) for key, value in entry.items() if value.shape == target.shape})
    optimizer.load_state_dict(state)


def gathered(value: Any) -> Any:
    """A copy of a nested state whose sharded tensors are whole (every process must ask)."""
    if isinstance(value, dict):
        return {key: gathered(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gathered(item) for item in value)
    return whole(value) if isinstance(value, Tensor) else value


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], where: Path, finished: bool) -> None:
    """Refuse a checkpoint that was made under other settings; a finished one may come from more or fewer processes."""
    for name in (*now, *saved):
        if not (finished and name == PER_STEP) and saved.get(name) != now.get(name):
            raise LimbeckError(
                f"{where} belongs to another configuration ({name}: {saved.get(name)!r} there, {now.get(name)!r} now); "
                "choose another out folder, or delete that one to start anew"
            )


class Checkpoints:
    """The checkpoints of one stage in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def newest(self) -> Path | None:
        """The folder of the newest checkpoint."""
        steps = [path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        return max(steps, key=lambda path: int(path.name[5:]), default=None)

    def save(self, step: int, weights: Mapping[str, Tensor], memory: Mapping[str, Any]) -> None:
        """Write the checkpoint of ``step`` and drop the others."""
        unfinished, final = self.folder / ".unfinished", self.folder / f"step-{step:08d}"
        tensors: dict[str, Tensor] = {}
        words = json.dumps({"format": FORMAT, "memory": pack(memory, tensors)})
        with writing(final):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            write_tensors(unfinished / "weights.safetensors", weights)
            write_tensors(unfinished / "memory.safetensors", tensors)
            (unfinished / "memory.json").write_text(words, encoding="utf-8")
        replace_dir(unfinished, final)
        self.tidy()

    def tidy(self) -> None:
        """Remove all but the newest checkpoint, and what a kill may have left half-written."""
        newest = self.newest()
        for path in (*self.folder.glob("step-*"), *self.folder.glob(".*")):
            if path.is_file():
                path.unlink()
            elif path != newest:
                shutil.rmtree(path, ignore_errors=True)

    def load(self) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint's folder, weights and memory; None if there is none."""
        path = self.newest()
        if path is None:
            return None
        content = read_json(path / "memory.json")
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise LimbeckError(f"{path} was written by another version of limbeck; choose another out folder")
        tensors, _ = load_tensors(path / "memory.safetensors")
        weights, _ = load_tensors(path / "weights.safetensors")
        return path, weights, unpack(content["memory"], tensors)
