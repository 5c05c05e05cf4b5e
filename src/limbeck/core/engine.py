"""What Accelerate and torch.optim are asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from limbeck.core.check import LimbeckError, one_of, require
from limbeck.core.checkpoint import whole
from limbeck.core.device import pick
from limbeck.core.stage import Stage

TRACKERS = ("tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio")
OTHER_ENGINES = {DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA}


def make_accelerator(tracker: str | None, folder: Path | None) -> Accelerator:
    """An Accelerator with the settings of ``accelerate launch`` or ``torchrun``, and ``tracker`` if one is wanted.

    ``tracker`` defaults to ``LIMBECK_TRACKER`` of the environment where there is a folder to write to; one that is
    unknown or not installed is refused.
    """
    tracker = tracker or (os.environ.get("LIMBECK_TRACKER") if folder else None)
    cpu = pick().type == "cpu"  # said outright, or processes of torchrun do not find each other
    if not tracker:
        return Accelerator(cpu=cpu)
    one_of(tracker, TRACKERS, "tracker")
    require(folder is not None, f"the tracker {tracker!r} needs a folder to write to: give fit(..., out=...)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Accelerate warns where we refuse
        accelerator = Accelerator(cpu=cpu, log_with=tracker, project_dir=str(folder))
    extra = "limbeck[trackers]" if tracker == "tensorboard" else tracker
    require(accelerator.log_with, f"the tracker {tracker!r} is not installed: pip install {extra!r}")
    return accelerator


class Trackers:
    """The trackers of an Accelerator; those that the caller has started are left running."""

    def __init__(self, accelerator: Accelerator, stage: Stage) -> None:
        self.accelerator = accelerator
        self.ours = bool(accelerator.log_with) and not accelerator.trackers
        if self.ours:
            accelerator.init_trackers(stage.name, {"steps": stage.steps, "lr": stage.optim.lr, "seed": stage.seed})

    def log(self, row: Mapping[str, float]) -> None:
        """Hand on one row of the log."""
        if self.accelerator.trackers:
            values = {name: value for name, value in row.items() if name != "step"}
            self.accelerator.log(values, step=int(row["step"]))

    def close(self) -> None:
        """End what was begun; Accelerate's own ``end_training`` would also end the group of processes."""
        if self.ours:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers = []


def check_accelerator(accelerator: Accelerator) -> None:
    """Refuse engines with a loop of their own; tell DDP and FSDP2 what they have to know about ``fit``."""
    kind = accelerator.distributed_type
    if kind in OTHER_ENGINES or (kind == DistributedType.FSDP and not accelerator.is_fsdp2):
        raise LimbeckError(
            f"fit runs on one process, DDP or FSDP2, but Accelerate is set to {kind.value}; run 'accelerate config' "
            "and choose multi-GPU, or FSDP of version 2"
        )
    if accelerator.is_fsdp2:
        # it would send all modules but one process's to the meta device, and untie their weights on the way back
        accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False
    if accelerator.ddp_handler is None:  # some parameters may get no gradient
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)


@contextmanager
def gathered_weights(learner: nn.Module) -> Iterator[None]:
    """Inside, the trained modules hold whole weights also under FSDP2, so that a callback can evaluate them."""
    if not isinstance(learner, FSDPModule):
        yield
        return
    learner.unshard()
    yield
    learner.reshard()


def unshard(train: Mapping[str, nn.Module]) -> None:
    """Give every process the whole weights again after FSDP2, as far as it can be undone.

    Modules that FSDP was told to wrap by themselves stay sharded: torch has no way back.
    """
    seen: dict[int, nn.Parameter] = {}
    for module in train.values():
        if any(isinstance(part, FSDPModule) for part in module.modules()):
            continue
        for part in module.modules():
            for name, value in list(part.named_parameters(recurse=False)):
                if isinstance(value, DTensor):
                    if id(value) not in seen:
                        seen[id(value)] = nn.Parameter(whole(value.detach()), value.requires_grad)
                    setattr(part, name, seen[id(value)])


def refuse_sharded(stage: Stage) -> None:
    """Refuse modules that an earlier stage of this process left sharded."""
    for name, module in stage.train.items():
        if any(isinstance(value, DTensor) for value in module.parameters()):
            raise LimbeckError(
                f"stage {stage.name!r}: {name!r} was sharded by an earlier stage and cannot be sharded anew; start the "
                "same command again, finished stages are skipped"
            )


def make_optimizer(stage: Stage) -> torch.optim.AdamW:
    """AdamW over the trained parameters, grouped by learning-rate multiplier and by whether weight decay applies."""
    optim, seen = stage.optim, set[int]()
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, module in stage.train.items():
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                decays = optim.weight_decay > 0 and parameter.ndim >= 2
                groups.setdefault((optim.groups.get(name, 1.0), decays), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {"params": parameters, "multiplier": multiplier, "weight_decay": optim.weight_decay if decays else 0.0}
        for (multiplier, decays), parameters in groups.items()
    ]
    return torch.optim.AdamW(settings, lr=optim.lr, betas=optim.betas, eps=optim.eps)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to ``rate`` times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]
