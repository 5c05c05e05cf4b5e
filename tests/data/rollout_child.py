"""Stages with text by the student, for processes of their own: ``rollout_child.py OUT``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from tiny_llms import build

from limbeck.core.check import LimbeckError
from limbeck.core.save import save_tensors
from limbeck.core.stage import Optim, Stage, distill_step
from limbeck.data.policies import Adaptive, Share
from limbeck.data.rollout import Reused, Rollout
from limbeck.data.samples import Sample, batch_of
from limbeck.data.writer import Sampling, Writer
from limbeck.objectives.tokens import soft
from limbeck.sources.model import model_source

STEPS = 5


def stage(kept: bool, accumulate: int = 1, after: tuple[Callable, ...] = ()) -> Stage:
    """A share of fresh text; or, with ``kept``, replayed text in batches that are used again."""
    student, teacher = build("gpt2"), build("gpt2", seed=3)
    rows = [Sample([4 + i, 5 + i], [6, 7 + i, 1]) for i in range(12)]
    stream = [batch_of(rows[i : i + 2]) for i in range(0, 12, 2)]
    policy: Any = Adaptive(lambda: 0.0, 1, capacity=3, start=1.0, replay="constant") if kept else Share(0.6)
    mixed: Any = Rollout(stream, Writer(student, Sampling(4)), policy, 1)
    mixed = Reused(mixed, 2, 2) if kept else mixed
    step, optim = distill_step(model_source(student), model_source(teacher), soft()), Optim(0.3, eps=1.0)
    train = {"student": student}
    return Stage("s", step, train, mixed, STEPS, optim, accumulate=accumulate, save_every=2, after=after)


class Stop(BaseException):
    """Ends a run where it stands."""


def stop(logs: Any, clock: Any) -> None:
    if clock.step == 3:
        raise Stop


def main(out: Path) -> None:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    from limbeck.core.fit import fit

    accelerator = Accelerator(cpu=True)

    def keep(trained: Stage, name: str) -> None:
        if accelerator.is_main_process:
            save_tensors(out / f"{name}.safetensors", dict(trained.train["student"].named_parameters()))

    for name, kept in (("plain", False), ("kept", True)):
        straight, resumed = stage(kept), stage(kept)
        fit(straight, None, accelerator)
        with contextlib.suppress(Stop):
            fit(stage(kept, after=(stop,)), out / name, accelerator)
        fit(resumed, out / name, accelerator)
        keep(straight, f"{name}-straight")
        keep(resumed, f"{name}-resumed")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator.state._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    try:
        fit(stage(False), None, accelerator)
        said = "nothing"
    except LimbeckError as error:
        said = str(error)
    if accelerator.is_main_process:
        (out / "fsdp.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
