"""A tiny tied language model trained on readouts, also as a script for two processes: ``fused_child.py OUT STEPS``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn

from limbeck.core.batch import Batch, next_token_batch
from limbeck.core.signals import Readout, Signals
from limbeck.core.stage import Optim, Stage, distill_step
from limbeck.losses.divergence import interpolated_cross_entropy, jsd, reverse_kl, skew_reverse_kl, total_variation
from limbeck.objectives.tokens import Comparing, Comparison, hard, soft
from limbeck.objectives.weighted import weighted

GOALS = {
    "soft": soft(),
    "reverse": soft(reverse_kl, temperature=2.0, rescale=True),
    "skew": soft(skew_reverse_kl),
    "variation": soft(total_variation),
    "hard": hard(),
    "taid": Comparing(lambda clock: Comparison("taid", divergence=partial(interpolated_cross_entropy, share=0.4)), ""),
    "mixed": weighted(kl=(1.0, soft(jsd, on="mask")), ce=(0.5, hard()), rkl=(0.2, soft(reverse_kl))),
}
RUNS = [*(("ddp", name) for name in GOALS), ("fsdp", "mixed")]
ROWS, LENGTH, TOKENS = 4, 6, 40


class Net(nn.Module):
    """Embeddings, a layer, and the embeddings again as the output layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, width)
        self.middle = nn.Linear(width, width)

    def forward(self, ids: torch.Tensor) -> Readout:
        return Readout(torch.tanh(self.middle(self.table(ids))), self.table.weight, scale=1.5)


def batches(number: int) -> list[Batch]:
    """Batches in which rows have unequally many positions that count."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(TOKENS, (number, ROWS, LENGTH), generator=generator)
    lengths = torch.randint(2, LENGTH + 1, (number, ROWS), generator=generator)
    keep = torch.rand(number, ROWS, LENGTH, generator=generator) < 0.6
    masks = torch.arange(LENGTH) < lengths[..., None]
    keep[..., 1] = True
    return [next_token_batch(i, m, k) for i, m, k in zip(ids, masks, keep, strict=True)]


def stage_of(name: str, steps: int, parts: int) -> tuple[Stage, Net]:
    """A stage whose optimizer step takes ``parts`` micro-batches, or one batch of two from each of two processes."""
    torch.manual_seed(0)
    net, teacher = Net(5), Net(7)
    size = ROWS // parts
    stream = [{k: v[at : at + size] for k, v in b.items()} for b in batches(steps) for at in range(0, ROWS, size)]
    step = distill_step(
        lambda b: Signals(readout=net(b["ids"])), lambda b: Signals(readout=teacher(b["ids"])), GOALS[name]
    )
    optim = Optim(lr=0.3, eps=1.0)  # with a large eps a wrong scale of the gradient shows in the weights
    stage = Stage(name, step, {"net": net}, stream, steps, optim, parts, frozen={"teacher": teacher}, log_every=1)
    return stage, net


def main(out: Path, steps: int) -> None:
    """Every goal under DDP, then one under FSDP2, on two processes; the main one writes the weights."""
    from dataclasses import replace

    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin

    from limbeck.core.fit import fit
    from limbeck.core.save import save_tensors

    for mode, name in RUNS:
        accelerator: Any = Accelerator(cpu=True)
        if mode == "fsdp":  # Accelerate shards on accelerators only; the sharding itself runs on CPUs as well
            plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
            accelerator.state._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
        stage, net = stage_of(name, steps, 2)
        fit(replace(stage, accumulate=1), out / mode / name, accelerator)
        if accelerator.is_main_process:
            save_tensors(out / f"{mode}-{name}.safetensors", dict(net.named_parameters()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
