"""The toy that the tests of ``fit`` train, also as a script for processes of its own: ``fit_child.py OUT STEPS``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from limbeck.core.batch import Batch
from limbeck.core.stage import Optim, Stage
from limbeck.core.terms import Clock, Term, Terms


class Net(nn.Module):
    """Dropout, tied weights, a buffer that moves, and a layer without gradient: what makes resuming and DDP hard."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.inside = nn.Linear(6, 8)
        self.outside = nn.Linear(8, 6)
        self.again = nn.Linear(6, 6, bias=False)
        self.tied = self.again
        self.unused = nn.Linear(3, 3)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.tied(self.outside(self.dropout(torch.tanh(self.inside(x)))))


def batches(number: int, rows: int = 4, seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    return [
        {
            "x": draw(rows, 5, 6),
            "y": draw(rows, 5, 6),
            "mask": draw(rows, 5) < 0.7,
            "answer": draw(rows, 5) < 0.3,
        }
        for _ in range(number)
    ]


def joined(parts: list[Batch]) -> Batch:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def two_masks(net: nn.Module, teacher: nn.Module) -> Any:
    """A step whose three terms are averaged over three units."""

    def step(batch: Batch, clock: Clock) -> Terms:
        with torch.no_grad():
            said = teacher(batch["x"])
        out = net(batch["x"])
        return Terms(
            soft=Term(((out - said) ** 2).sum(-1)[batch["mask"]].sum(), "mask", 0.7),
            hard=Term((out - batch["y"]).abs().sum(-1)[batch["answer"]].sum(), "answer", 1.0 - 0.5 * clock.fraction),
            size=Term((out**2).mean((1, 2)).sum(), "row", 0.1),
        )

    return step


class Walk:
    """A Stateful stream with a random generator of its own, and a rate that a callback may change."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.position = 0
        self.scale = 1.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.position += 1
            shape = (3, 5, 6)
            x, y = (torch.rand(shape, generator=self.generator) * self.scale for _ in range(2))
            mask = torch.rand(3, 5, generator=self.generator) < 0.5
            yield {"x": x, "y": y, "mask": mask, "answer": ~mask}

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "scale": self.scale, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position, self.scale = state["position"], state["scale"]
        self.generator.set_state(state["generator"])


class Pace:
    """A controller: reads raw means, remembers them, and acts on the stream."""

    def __init__(self, walk: Walk) -> None:
        self.walk, self.heard = walk, dict[int, float]()

    def __call__(self, logs: Mapping[str, float], clock: Clock) -> None:
        self.heard[clock.step] = logs["soft"]
        self.walk.scale = 1.0 + 0.1 * sum(self.heard.values()) / len(self.heard)

    def state_dict(self) -> dict[str, Any]:
        return {"heard": self.heard}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.heard = state["heard"]


def controlled(steps: int, save_every: int | None = None, seed: int = 0) -> tuple[Stage, Net]:
    """A stage with everything that has a memory: dropout, stream, controller, warm-up and decay."""
    torch.manual_seed(0)
    teacher = Net()
    torch.manual_seed(seed)
    net, walk = Net(dropout=0.3), Walk()
    pace = Pace(walk)
    stage = Stage(
        "toy",
        two_masks(net, teacher),
        {"net": net},
        walk,
        steps,
        Optim(lr=1e-2, warmup=0.2, weight_decay=0.1, schedule="cosine"),
        accumulate=2,
        after=[pace],
        frozen={"teacher": teacher},
        seed=3,
        save_every=save_every,
        log_every=1,
    )
    return stage, net


def shared_out(world: int, steps: int) -> tuple[Stage, Net]:
    """The stage of the tests with two processes; one process takes ``world`` batches joined into one."""
    torch.manual_seed(0)
    net, teacher = Net(), Net()
    stream: list[Batch] = batches(2 * steps)
    if world == 1:
        stream = [joined(stream[i : i + 2]) for i in range(0, len(stream), 2)]
    optim = Optim(lr=0.3, eps=1.0)  # with a large eps a wrong scale of the gradient shows in the weights
    return Stage("toy", two_masks(net, teacher), {"net": net}, stream, steps, optim, log_every=1), net


def stopped_and_resumed(mode: str, out: Path, accelerator: Any, steps: int) -> Net:
    """Train in ``out``, stop in the middle of a step, and train on with fresh modules."""
    from limbeck.core.fit import fit

    stage, net = shared_out(accelerator.num_processes, steps)

    def interrupted() -> Iterator[Batch]:
        yield from stage.stream[: 2 * steps - 3]
        assert all(isinstance(p, DTensor) for p in net.parameters()) == (mode == "fsdp")
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        fit(replace(stage, stream=interrupted(), save_every=2), out, accelerator)
    assert (out / "toy" / "step-00000004").is_dir()
    assert not (out / "toy" / "done").exists()
    stage, net = shared_out(accelerator.num_processes, steps)
    with torch.no_grad():
        net.inside.weight.zero_()  # what resuming has to undo
    fit(replace(stage, save_every=2, after=[lambda logs, clock: net(torch.zeros(1, 6))]), out, accelerator)
    return net


def main(out: Path, steps: int) -> None:
    """DDP, then FSDP2, on the processes that the environment names; the main one writes the weights."""
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin

    from limbeck.core.save import save_tensors

    for mode in ("ddp", "fsdp"):
        accelerator = Accelerator(cpu=True)
        if mode == "fsdp":  # Accelerate shards on accelerators only; the sharding itself runs on CPUs as well
            plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
            accelerator.state._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
        net = stopped_and_resumed(mode, out / mode, accelerator, steps)
        if accelerator.is_main_process:
            save_tensors(out / f"{mode}.safetensors", dict(net.named_parameters()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
