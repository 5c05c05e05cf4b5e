"""The only training loop: accumulate, normalise, clip, step, log, save and resume, each once and for all methods.

It stands on Accelerate: device, mixed precision, DDP and FSDP2 are chosen by ``accelerate launch`` or ``torchrun`` and
change nothing here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from limbeck.core.batch import Batch, to_device
from limbeck.core.checkpoint import (
    Checkpoints,
    check_same,
    gathered,
    load_optimizer,
    load_weights,
    named_weights,
    whole,
)
from limbeck.core.engine import (
    check_accelerator,
    chosen_tracker,
    fingerprint,
    make_accelerator,
    make_optimizer,
    set_rate,
)
from limbeck.core.feed import Feed
from limbeck.core.learn import Counts, Learner, Record, add_up, count_units, read, refuse_non_finite
from limbeck.core.rng import random_state, random_state_kept, seed_everything, set_random_state
from limbeck.core.save import make_folder, read_json, write_json
from limbeck.core.stage import Stage, Stateful, check_trainable, freeze
from limbeck.core.terms import Clock
from limbeck.core.track import Metrics, Voice

SAVE_SECONDS = 600.0  # a run that says nothing else about saving loses at most ten minutes to a kill


def fit(
    stage: Stage, out: Path | None = None, accelerator: Accelerator | None = None, tracker: str | None = None
) -> dict[str, float]:
    """Train ``stage`` and return ``steps``, ``loss`` (of the last step), ``seconds`` and ``rows``.

    With ``out``, everything goes to ``out/<stage.name>/``: checkpoints, from which a run that was killed at any moment
    continues bit for bit; ``metrics.jsonl``, one object per logged step with the raw mean of every term; and at the end
    ``done``: a stage that has it is not trained again, its weights and state are loaded. Without ``out`` no file is written.

    ``accelerator`` belongs to ``fit`` while it runs; without one, Accelerate's own settings hold. ``tracker`` names one of
    Accelerate's trackers, such as "tensorboard" (default: the environment's ``LIMBECK_TRACKER``). The trained modules are in
    eval mode afterwards; the caller's random state is left as it was.

    Raises ``LimbeckError`` where the folder cannot be written, holds another stage's checkpoint, or a loss is not finite.
    """
    check_trainable(stage)
    with random_state_kept():
        run = _Run(stage, Path(out) if out is not None else None, accelerator, tracker)
        try:
            return run.run()
        finally:
            run.close()


class _Run:
    """One stage being trained: all that changes while it runs."""

    def __init__(self, stage: Stage, out: Path | None, accelerator: Accelerator | None, tracker: str | None) -> None:
        self.stage = stage
        self.folder = make_folder(out / stage.name) if out is not None else None
        self.accelerator = accelerator or make_accelerator(chosen_tracker(tracker), self.folder)
        check_accelerator(self.accelerator)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.where = f"stage {stage.name!r}"
        self.feed = Feed(stage.stream, stage.accumulate, self.rank, self.world)
        self.step = self.rows = 0
        self.seconds, self.saved_at, self.saved_step = 0.0, time.monotonic(), -1
        self.pending: list[Record] = []
        self.row: dict[str, float] = {"loss": float("nan")}
        self.metrics: Metrics | None = None
        self.voice: Voice | None = None
        self.optimizer: Any = None

    def run(self) -> dict[str, float]:
        """Train, or load what was trained."""
        done = self.folder / "done" if self.folder else None
        seed_everything(self.stage.seed, self.rank)
        for module in (*self.stage.train.values(), *self.stage.frozen.values()):
            module.to(self.accelerator.device)
        for module in self.stage.frozen.values():
            freeze(module)
        if done is not None and done.exists():
            self._load(finished=True)
            return read_json(done)
        self._prepare()
        self._load()
        self._open()
        began = time.monotonic() - self.seconds
        while self.step < self.stage.steps:
            self._advance()
            self.seconds = time.monotonic() - began
            self._report()
        if self.saved_step != self.step:
            self._save()
        summary = {"steps": self.step, "loss": self.row["loss"], "seconds": self.seconds, "rows": self.rows}
        if done is not None and self.accelerator.is_main_process:
            write_json(done, summary)
        self.accelerator.wait_for_everyone()
        return summary

    def _prepare(self) -> None:
        for module in self.stage.train.values():
            module.train()
        self.inner = Learner(self.stage)
        self.learner, self.optimizer = self.accelerator.prepare(self.inner, make_optimizer(self.stage))
        self.parameters = list(self.learner.parameters())

    def _open(self) -> None:
        main = self.accelerator.is_main_process
        if self.folder is not None and main:
            self.metrics = Metrics(self.folder / "metrics.jsonl", self.step)
        self.voice = Voice(self.stage.name, self.step, self.stage.steps, main)
        self.tracks = bool(self.accelerator.log_with) and not self.accelerator.trackers
        if self.tracks:
            self.accelerator.init_trackers(self.stage.name, {"steps": self.stage.steps, "lr": self.stage.optim.lr})

    def _advance(self) -> None:
        """One optimizer step."""
        stage, clock = self.stage, Clock(self.step, self.stage.steps)
        micro = self.feed.take()
        record = Record(self.step + 1, stage.optim.lr_at(self.step, stage.steps), self._count(micro))
        # DDP and FSDP2 average over processes, Accelerate over accumulation; the sums here are of means already
        scale = self.world * self.accelerator.gradient_accumulation_steps
        for index, batch in enumerate(micro, 1):
            with nullcontext() if index == len(micro) else self.accelerator.no_sync(self.learner):
                loss = self.learner(to_device(batch, self.accelerator.device), clock, record.counts)
                self.accelerator.backward(loss * scale if scale != 1 else loss)
            record.hear(loss, self.inner.said)
        record.norm = whole(self.accelerator.clip_grad_norm_(self.parameters, stage.clip or float("inf")))
        self.pending.append(record)
        self.rows += int(record.counts["row"])
        if stage.after or self.accelerator.device.type == "cpu":
            self._read()  # before the weights move; elsewhere only when somebody looks, as it waits for the device
        set_rate(self.optimizer, record.rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def _count(self, micro: list[Batch]) -> Counts:
        counts = count_units(micro)
        return Counts(add_up(gather_object([counts])) if self.world > 1 else counts)

    def _read(self) -> None:
        """Wait for the device; refuse what is not finite."""
        if not self.pending:
            return
        for row in read(self.pending, self.world):
            refuse_non_finite(row, self.where, norm_may_overflow=self.accelerator.scaler is not None)
            self.row = row
        self.pending.clear()

    def _report(self) -> None:
        """After the step: callbacks, log, checkpoint."""
        stage, step = self.stage, self.step
        logged = step % stage.log_every == 0 or step in (1, stage.steps)
        if logged:
            self._read()
        for call in stage.after:
            call(self.row, Clock(step, stage.steps))
        if stage.after:
            for module in stage.train.values():
                if not module.training:  # a callback that evaluates may forget
                    module.train()
        if logged:
            self._log(self.row | {"rows": self.rows, "seconds": round(self.seconds, 3)})
        if self.voice is not None:
            self.voice.tell(step, self.rows, self.row if logged else None)
        if step % (stage.save_every or max(1, stage.steps // 10)) == 0 or (logged and self._late()):
            self._save()

    def _log(self, row: dict[str, float]) -> None:
        if self.metrics is not None:
            self.metrics.write(row)
        if self.accelerator.trackers:
            self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=self.step)

    def _late(self) -> bool:
        late = self.stage.save_every is None and time.monotonic() - self.saved_at > SAVE_SECONDS
        return gather_object([late])[0] if self.world > 1 else late  # the clocks differ, the main process decides

    def _members(self) -> dict[str, Stateful]:
        """Everything Stateful besides the stream."""
        called = {f"after {index}": call for index, call in enumerate(self.stage.after) if isinstance(call, Stateful)}
        return {f"state {name}": value for name, value in self.stage.state.items()} | called

    def _save(self) -> None:
        """Write a checkpoint; without a folder, do nothing."""
        self._read()
        self.saved_at, self.saved_step = time.monotonic(), self.step
        if self.folder is None:
            return
        finished, scaler = self.step == self.stage.steps, self.accelerator.scaler
        memory = {
            "settings": fingerprint(self.stage, self.world),
            "step": self.step,
            "rows": self.rows,
            "seconds": self.seconds,
            "row": self.row,
            "feed": self.feed.state_dict(),
            "members": {name: member.state_dict() for name, member in self._members().items()},
            "random": gather_object([random_state()]) if self.world > 1 else [random_state()],
            "optimizer": None if finished else gathered(self.optimizer.state_dict()),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        weights = {name: whole(value) for name, value in named_weights(self.stage.train).items()}
        if self.accelerator.is_main_process:
            if self.metrics is not None:
                self.metrics.flush()
            Checkpoints(self.folder).save(self.step, weights, memory)
        self.accelerator.wait_for_everyone()

    def _load(self, finished: bool = False) -> None:
        """Continue from the newest checkpoint, if there is one."""
        found = Checkpoints(self.folder).load() if self.folder is not None else None
        if found is None:
            return
        path, weights, memory = found
        check_same(memory["settings"], fingerprint(self.stage, self.world), path, finished)
        load_weights(self.stage.train, weights, str(path))
        self.step, self.rows, self.seconds, self.row = (memory[key] for key in ("step", "rows", "seconds", "row"))
        self.saved_step = self.step
        if not finished or isinstance(self.stage.stream, Stateful | Iterator):
            self.feed.load_state_dict(memory["feed"])
        for name, member in self._members().items():
            member.load_state_dict(memory["members"][name])
        if memory["optimizer"] is not None and not finished:
            load_optimizer(self.optimizer, memory["optimizer"])
            if memory["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(memory["scaler"])
        same = len(memory["random"]) == self.world
        seed_everything(self.stage.seed + self.step, self.rank)
        if same:
            set_random_state(memory["random"][self.rank])

    def close(self) -> None:
        """Leave the modules, the terminal and the accelerator as a caller expects them."""
        for thing in (self.metrics, self.voice):
            if thing is not None:
                thing.close()
        for module in self.stage.train.values():
            module.eval()
            module.zero_grad(set_to_none=True)
        if getattr(self, "tracks", False):
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers = []
        self.accelerator.free_memory()
