"""A run: the folder that a method writes, what it says about itself, and how it is begun and finished.

``main(cfg)`` of a method reads::

    run = begin(cfg, "taid")
    run.heed(doctor(student, teacher, tokenizer, batches=held_out))
    student = taid(..., out=run.stage_dir)
    run.finish(student, tokenizer, metrics={"loss": 0.2}, sections=[Table(...)])

The folder then holds the student (``save_pretrained``), ``run.json``, ``metrics.json``, ``README.md`` and
``report.html``. The same command in the same folder resumes; another configuration is refused.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limbeck.core.check import require
from limbeck.core.device import Device, pick
from limbeck.core.rng import seed_everything as seed_all
from limbeck.core.save import make_folder, open_to_readers, read_json, write_json
from limbeck.record import RECORD, find_record, make_record
from limbeck.report.sections import Section, Table

if TYPE_CHECKING:
    from accelerate import Accelerator

    from limbeck.analyses.doctor import Findings


CHECKED = "doctor.json"
COUNTS = "accumulate save_every steps batch length shots asked tasks queries prompt_steps".split()


@dataclass(frozen=True)
class Run:
    """What every method's ``Config`` begins with; a method adds ``steps``, ``batch``, ``lr`` and its own fields."""

    out: Path = Path("runs/limbeck")
    """Folder that the run writes; a run found there with the same configuration is resumed."""
    seed: int = 0
    """Seed of everything random: data order, initialisation, dropout."""
    device: Device = "auto"
    """Where to compute; auto: on an accelerator if there is one. CUDA_VISIBLE_DEVICES says which of several GPUs."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; "no" computes in the model's own precision, or as `accelerate launch` says."""
    accumulate: int = 1
    """Batches per optimizer step; a step sees accumulate x batch rows per process."""
    save_every: int | None = None
    """Steps between checkpoints; by default a tenth of the run, and ten minutes at most."""
    tracker: Literal["none", "tensorboard"] = "none"
    """Where metrics go besides metrics.jsonl."""


@dataclass(frozen=True)
class Started:
    """A run that has begun: its folder ``out``, configuration and method."""

    cfg: Run
    method: str
    record: Mapping[str, Any] = field(repr=False)

    @property
    def out(self) -> Path:
        """The folder that the run writes."""
        return Path(self.cfg.out)

    @property
    def stage_dir(self) -> Path:
        """Where ``fit`` keeps its stages: checkpoints, ``metrics.jsonl``, ``done`` markers."""
        return self.out / "stages"

    @cached_property
    def accelerator(self) -> Accelerator:
        """Accelerate's engine as the configuration asks for it: device, precision, tracker."""
        return _accelerator(self.cfg, self.method)

    def heed(self, findings: Findings) -> None:
        """Say what ``analyses.doctor`` found before step 0, and stop where the run would be spoiled.

        All of it stands in ``doctor.json`` and in the report; the terminal gets a table if there is more than "ok". A
        run that is stopped before it ever trained leaves nothing behind.
        """
        if _first_rank():
            if not findings.well:
                from limbeck.report.terminal import print_table

                print_table(_checked(findings.rows()))
            if findings.at("stop") and not self.stage_dir.exists():
                (self.out / RECORD).unlink(missing_ok=True)
                if not any(self.out.iterdir()):
                    self.out.rmdir()
        findings.heed()
        if _first_rank():
            write_json(self.out / CHECKED, findings.rows())

    def finish(
        self,
        model: Any = None,
        tokenizer: Any = None,
        metrics: Mapping[str, Any] | None = None,
        sections: Sequence[Section] = (),
        base_model: str | None = None,
    ) -> Path:
        """Write the student, the model card, the report and ``metrics.json`` (last: its presence says all is there).

        ``model`` and ``tokenizer`` need ``save_pretrained``; either may be None. ``metrics`` is any JSON value by name.
        ``base_model`` is what the student was made from, by default the configuration's student, llm or model.
        Returns the folder. Ranks other than the first write nothing.
        """
        if not _first_rank():
            return self.out
        from limbeck.report.model_card import loading, write_model_card
        from limbeck.report.run_report import write_run_report

        for part in (model, tokenizer):
            save_artefact(part, self.out)
        measured = dict(metrics or {})
        write_model_card(self, measured, base_model or _base_model(self.cfg), loading(model, tokenizer, self.out))
        write_run_report(self.out, self.record, measured, [*sections, *_checks_of(self.out)])
        write_json(self.out / "metrics.json", measured)
        for tracker in self.accelerator.trackers if "accelerator" in self.__dict__ else ():
            tracker.finish()  # not end_training, which would take the other processes' group away
        print(f"wrote {self.out}: {', '.join(_visible(self.out))}")
        return self.out


def begin(cfg: Run, method: str) -> Started:
    """Begin or resume the run of ``method`` in ``cfg.out``: check the folder, seed, and write ``run.json``.

    Raises ``LimbeckError`` for a folder that cannot be written, that holds a run of another method or configuration, or
    that holds files of the names that a run writes, such as somebody else's model.
    """
    out = Path(cfg.out)
    pick(cfg.device)  # refuses one that is not there
    _check_numbers(cfg)
    make_folder(out)
    record = make_record(cfg, method, find_record(out, method, cfg))
    if _first_rank():
        write_json(out / RECORD, record)
    seed_all(cfg.seed)
    return Started(cfg, method, record)


def save_artefact(part: Any, out: Path) -> None:
    """``part.save_pretrained`` into ``out``, file by file and each at once, so that a kill leaves no half file."""
    if part is None:
        return
    require(hasattr(part, "save_pretrained"), f"cannot save {type(part).__name__}: it has no save_pretrained")
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=out) as folder:
        part.save_pretrained(folder)
        for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
            final = out / path.relative_to(folder)
            final.parent.mkdir(parents=True, exist_ok=True)
            open_to_readers(path)
            os.replace(path, final)


def _visible(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


def _checked(rows: Sequence[Sequence[str]]) -> Table:
    return Table("Before step 0", ("check", "", "found"), rows)


def _checks_of(out: Path) -> list[Section]:
    """What was found before step 0, for the report."""
    return [_checked(read_json(out / CHECKED))] if (out / CHECKED).exists() else []


def _first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _check_numbers(cfg: Run) -> None:
    for name in COUNTS:
        value = getattr(cfg, name, None)
        flag = name.replace("_", "-")
        require(not isinstance(value, int) or value >= 1, f"--{flag} {value}: expected a whole number of at least 1")
    lr = getattr(cfg, "lr", None)
    require(not isinstance(lr, float) or 0 < lr < float("inf"), f"--lr {lr}: expected a learning rate above 0")
    warmup = getattr(cfg, "warmup", 0.0)
    require(warmup >= 0, f"--warmup {warmup}: expected a number of steps or a share of them, of at least 0")
    require(0 <= cfg.seed < 2**32, f"--seed {cfg.seed}: expected a whole number from 0 to 4294967295")


def _base_model(cfg: Run) -> str | None:
    """The model that the student was made from; a student that is a size or a share was made from its teacher."""
    from limbeck.data.store.folder import is_store, told_by
    from limbeck.students.layers import parse_size
    from limbeck.students.load import EVERY_OTHER, HALF

    named = (getattr(cfg, name, None) for name in ("student", "llm", "model", "teacher"))
    texts = [str(value) for value in named if isinstance(value, str | Path)]
    found = next((text for text in texts if text not in (EVERY_OTHER, HALF) and not parse_size(text)), None)
    return told_by(found) if found and is_store(found) else found


def _accelerator(cfg: Run, method: str) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    tracked = cfg.tracker != "none"
    if tracked:
        _need_tensorboard()
    engine = Accelerator(
        cpu=pick(cfg.device).type == "cpu",  # said outright, or processes of torchrun do not find each other
        mixed_precision=None if cfg.precision == "no" else cfg.precision,
        log_with=cfg.tracker if tracked else None,
        project_config=ProjectConfiguration(project_dir=str(cfg.out), logging_dir=str(Path(cfg.out) / cfg.tracker)),
    )
    if tracked:
        engine.init_trackers(method)
    return engine


def _need_tensorboard() -> None:
    from importlib.util import find_spec

    require(
        find_spec("tensorboard"),
        "--tracker tensorboard needs TensorBoard; install it with pip install limbeck[trackers]",
    )
