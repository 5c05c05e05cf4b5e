"""The only training loop: accumulate, normalise, clip, step, log, save and resume, each once and for all methods.

It stands on Accelerate: device, mixed precision, DDP and FSDP2 are chosen by ``accelerate launch`` or ``torchrun`` and
change nothing here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from limbeck.core.batch import Batch, to_device
from limbeck.core.check import LimbeckError, require
from limbeck.core.checkpoint import whole
from limbeck.core.engine import (
    Trackers,
    check_accelerator,
    gathered_weights,
    make_accelerator,
    make_optimizer,
    refuse_sharded,
    set_rate,
    unshard,
)
from limbeck.core.feed import Feed
from limbeck.core.learn import Counts, Learner, Record, add_up, count_units, read, refuse_non_finite
from limbeck.core.resume import Keeper, Progress
from limbeck.core.rng import random_state_kept, seed_everything
from limbeck.core.save import make_folder, read_json, write_json
from limbeck.core.stage import Stage, check_trainable, freeze
from limbeck.core.terms import Clock
from limbeck.core.track import Metrics, Voice

READ_AT_ONCE = {"cpu"}  # elsewhere reading waits for the device, so it is put off until somebody looks
SAVE_SECONDS = 600.0  # a run that says nothing about saving loses at most ten minutes to a kill


def fit(
    stage: Stage,
    out: Path | str | None = None,
    accelerator: Accelerator | None = None,
    tracker: str | None = None,
) -> dict[str, float]:
    """Train ``stage`` and return ``steps``, ``loss`` (of the last step), ``seconds`` and ``rows``.

    With ``out``, everything goes to ``out/<stage.name>/``: checkpoints, from which a run that was killed at any moment
    continues bit for bit; ``metrics.jsonl``, one object per logged step with the raw mean of every term; and at the
    end ``done``. A stage that has it is not trained again: its weights and state are loaded. Without ``out`` no file
    is written.

    ``accelerator`` belongs to ``fit`` while it runs; without one, Accelerate's own settings hold. ``tracker`` is one of
    Accelerate's trackers, such as "tensorboard" (default: ``LIMBECK_TRACKER`` of the environment). Afterwards the
    trained modules are on the accelerator's device and in eval mode, and the random state is the caller's again.

    Raises ``LimbeckError`` where the folder cannot be written, holds the checkpoint of another stage, or a loss is not
    finite.
    """
    check_trainable(stage)
    refuse_sharded(stage)
    folder = None if out is None else make_folder(Path(out) / stage.name)
    given, accelerator = accelerator is not None, accelerator or make_accelerator(tracker, folder)
    check_accelerator(accelerator)
    with random_state_kept():
        seed_everything(stage.seed, accelerator.process_index)
        _place(stage, accelerator)
        feed = Feed(stage.stream, stage.accumulate, accelerator.process_index, accelerator.num_processes)
        try:
            if folder is not None and (folder / "done").exists():
                found = Keeper(stage, folder, accelerator, feed).load(None, finished=True)
                require(found, f"{folder} is marked as done, but has no checkpoint; delete it to train anew")
                return read_json(folder / "done")
            summary = _Run(stage, folder, accelerator, feed).run()
            unshard(stage.train)  # all processes together, so not where one of them has failed
            return summary
        finally:
            for module in stage.train.values():
                module.eval()
                module.zero_grad(set_to_none=True)
            if given or accelerator.device.type != "cpu":  # else it goes with all it holds, without a slow search
                accelerator.free_memory()


def _place(stage: Stage, accelerator: Accelerator) -> None:
    for module in stage.train.values():
        module.to(accelerator.device).train()
    for module in stage.frozen.values():
        freeze(module.to(accelerator.device))


class _Run:
    """One stage while it is trained."""

    def __init__(self, stage: Stage, folder: Path | None, accelerator: Accelerator, feed: Feed) -> None:
        self.stage, self.folder, self.accelerator, self.feed = stage, folder, accelerator, feed
        self.world = accelerator.num_processes
        self.inner = Learner(stage)
        self.learner, self.optimizer = accelerator.prepare(self.inner, make_optimizer(stage))
        self.parameters = list(self.learner.parameters())
        self.keeper = Keeper(stage, folder, accelerator, feed)
        self.at = self.keeper.load(self.optimizer) or Progress()
        self.saved, self.saved_at = self.at.step, time.monotonic()
        self.pending: list[Record] = []
        logs = folder / "metrics.jsonl" if folder is not None and accelerator.is_main_process else None
        self.metrics = None if logs is None else Metrics(logs, self.at.step)

    def run(self) -> dict[str, float]:
        """Train to the end."""
        stage, at, main = self.stage, self.at, self.accelerator.is_main_process
        self.trackers = Trackers(self.accelerator, stage)
        self.voice = Voice(stage.name, at.step, at.rows, stage.steps, main)
        began = time.monotonic() - at.seconds
        try:
            while at.step < stage.steps:
                self._advance()
                at.seconds = time.monotonic() - began
                self._report()
            if self.saved != at.step or not at.step:
                self._save()
        finally:
            for thing in (self.metrics, self.voice, self.trackers):
                if thing is not None:
                    thing.close()
        summary = {"steps": at.step, "loss": at.row["loss"], "seconds": at.seconds, "rows": at.rows}
        if self.folder is not None and main:
            write_json(self.folder / "done", summary)
        self.accelerator.wait_for_everyone()
        return summary

    def _advance(self) -> None:
        """One optimizer step."""
        stage, at = self.stage, self.at
        try:
            record = self._gradients(Clock(at.step, stage.steps))
        except LimbeckError as error:
            raise LimbeckError(f"stage {stage.name!r}, step {at.step + 1}: {error}") from error
        record.norm = whole(self.accelerator.clip_grad_norm_(self.parameters, stage.clip or float("inf")))
        self.pending.append(record)
        if stage.after or self.accelerator.device.type in READ_AT_ONCE:
            self._read()  # before the weights move
        set_rate(self.optimizer, record.rate)
        self._step()
        at.step += 1
        at.rows += int(record.counts["row"])

    def _step(self) -> None:
        # Accelerate's wrapper is there for its scaler and for optimizers not used here, and costs a third of a
        # millisecond each time by looking whether one of them is installed
        plain = self.optimizer.optimizer
        (plain if self.accelerator.scaler is None else self.optimizer).step()
        plain.zero_grad()

    def _gradients(self, clock: Clock) -> Record:
        """Draw the micro-batches of one optimizer step, count their units, and add up their gradients."""
        micro = self.feed.take()
        record = Record(clock.step + 1, self.stage.optim.lr_at(clock.step, clock.steps), self._count(micro))
        # the losses are shares of one mean already, but processes and Accelerate's own accumulation average them
        scale = self.world * self.accelerator.gradient_accumulation_steps
        for index, batch in enumerate(micro, 1):
            with nullcontext() if index == len(micro) else self.accelerator.no_sync(self.learner):
                loss = self.learner(to_device(batch, self.accelerator.device), clock, record.counts)
                self.accelerator.backward(loss * scale if scale != 1 else loss)
            record.hear(loss, self.inner.said)
        return record

    def _count(self, micro: list[Batch]) -> Counts:
        counts = count_units(micro)
        return Counts(add_up(gather_object([counts])) if self.world > 1 else counts)

    def _read(self) -> None:
        """Wait for the device; refuse what is not finite."""
        for row in read(self.pending, self.world):
            refuse_non_finite(row, f"stage {self.stage.name!r}", self.accelerator.scaler is not None)
            self.at.row = row
        self.pending.clear()

    def _report(self) -> None:
        """After the step: callbacks, log, checkpoint."""
        stage, at = self.stage, self.at
        logged = at.step % stage.log_every == 0 or at.step in (1, stage.steps)
        if logged:
            self._read()
        with gathered_weights(self.learner) if stage.after else nullcontext():
            for call in stage.after:
                logged = self._hear(call(at.row, Clock(at.step, stage.steps))) or logged
        for module in stage.train.values() if stage.after else ():
            if not module.training:  # left in eval mode by a callback that evaluates
                module.train()
        if logged:
            self._log(at.row | {"rows": at.rows, "seconds": round(at.seconds, 3)})
        self.voice.tell(at.step, at.rows, at.row if logged else None)
        if at.step % (stage.save_every or max(1, stage.steps // 10)) == 0 or (logged and self._late()):
            self._save()

    def _hear(self, said: Any) -> bool:
        """Put the numbers that a callback returns into the step's row; whether there were any."""
        if not isinstance(said, Mapping) or not said:  # a lambda returns whatever its last call does
            return False
        for name in said:
            require(name not in self.at.row, f"a callback may not log {name!r}: the step has a value of that name")
        self.at.row = {**self.at.row, **said}
        return True

    def _log(self, row: dict[str, float]) -> None:
        if self.metrics is not None:
            self.metrics.write(row)
        self.trackers.log(row)

    def _late(self) -> bool:
        """Whether ten minutes have passed since the last checkpoint, on the main process's clock."""
        late = self.stage.save_every is None and time.monotonic() - self.saved_at > SAVE_SECONDS
        return gather_object([late])[0] if self.world > 1 else late

    def _save(self) -> None:
        self._read()  # nothing that is not finite gets into a checkpoint
        if self.metrics is not None:
            self.metrics.flush()
        self.keeper.save(self.at, self.optimizer)
        self.saved, self.saved_at = self.at.step, time.monotonic()
