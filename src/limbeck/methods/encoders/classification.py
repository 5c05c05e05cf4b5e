"""What the methods for classifiers share: the task, models by name, fine-tuning, and what is measured.

Not a method: a method's ``main`` makes a ``Job``, has its teacher fine-tuned where it needs to be, and runs its recipe
between two measurements::

    job = job_of(cfg, task(cfg.data, cfg.seed))
    run = begin(cfg, "method")
    job, said = with_tuned_teacher(job, cfg, run)
    return taught(job, run, lambda: recipe(job.student, job.teacher, job.stream(job.rows.train), cfg), said)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from limbeck.analyses.doctor import Findings, doctor, joined
from limbeck.analyses.measure import measure
from limbeck.atlas.topics import topics
from limbeck.core.batch import Batch, to_device
from limbeck.core.fit import fit
from limbeck.core.signals import Signals, Source
from limbeck.core.stage import Optim, Stage, distill_step, freeze, stage_settings
from limbeck.data.labelled import Row, Rows, classes_in, in_turn, labelled_batches, part, read_labelled
from limbeck.data.stream import Batches
from limbeck.evaluation.model import check_length
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.models.classifiers import load_classifier
from limbeck.objectives.classes import classes, verdicts
from limbeck.objectives.tokens import soft
from limbeck.objectives.weighted import weighted
from limbeck.report.sections import before_and_after
from limbeck.run import Started, seed_all
from limbeck.sources.model import model_source
from limbeck.students.classifiers import classifier_student

ATLAS = "limbeck:atlas/weights/encoder-a"
JUDGED = "Shares of rows: of right answers, and of equal answers. logits: cross-entropy to the teacher, in nats."


class Job(NamedTuple):
    """What a recipe gets from the command line.

    ``stream(rows, mixup=None)`` makes a training stream of rows; ``test`` are the batches to judge by; ``tuned`` says
    whether the teacher knows the task.
    """

    student: Any
    teacher: Any
    tokenizer: Any
    classes: list[str]
    tuned: bool
    rows: Rows
    stream: Callable[..., Batches]
    test: list[Batch]


def task(data: str | None, seed: int, number: int = 1500) -> Rows:
    """The user's rows or ``number`` of the atlas's, parted into rows to learn from and rows to judge by."""
    if data is not None:
        return part(read_labelled(data), seed=seed)
    return part([Row(row["text"], label=row["label"]) for row in topics("en", number, seed)], seed=seed)


def job_of(cfg: Any, rows: Rows) -> Job:
    """Teacher and student that ``cfg`` names, for the classes of ``rows``; a teacher that is none gets a new head."""
    seed_all(cfg.seed)
    teacher, tokenizer, names, tuned = load_classifier(cfg.teacher, classes_in(rows.train), cfg.teacher_dtype)
    student = classifier_student(cfg.student, teacher, tokenizer, names)
    check_length(cfg.length, teacher=teacher, student=student)
    return Job(student, teacher, tokenizer, names, tuned, rows, *streams(rows, names, tokenizer, teacher, cfg))


def examined(job: Job, device: Any) -> Findings:
    """What the doctor finds in student and teacher; one that does not know the task is not judged by its answers."""
    both = model_source(job.student.eval().to(device)), model_source(job.teacher.eval().to(device))
    first = to_device(job.test[0], device)
    return doctor(*both, job.tokenizer, batches=[first], on="labelled", taught=job.tuned)


def with_tuned_teacher(job: Job, cfg: Any, run: Started, found: Sequence[Findings] = ()) -> tuple[Job, dict[str, Any]]:
    """The job with its teacher fine-tuned on the labels, if it needs to be, and the student made from that teacher.

    Before that the doctor looks at both; ``found`` is what it has found elsewhere.
    """
    run.heed(joined([examined(job, run.accelerator.device), *found]))
    if job.tuned:
        return job, {}
    known = job.stream([row for row in job.rows.train if row.label is not None])
    said = fine_tune("teacher", job.teacher.float(), known, cfg.teacher_steps, cfg, run.stage_dir, run.accelerator)
    seed_all(cfg.seed)  # a resumed run makes the same student
    student = classifier_student(cfg.student, job.teacher.cpu(), job.tokenizer, job.classes)
    return job._replace(student=student, tuned=True), {"teacher": said}


def taught(job: Job, run: Started, recipe: Callable[[], Mapping[str, Any]], said: Mapping[str, Any]) -> Path:
    """Measure the student, run ``recipe``, measure it again; writes it, its report, ``said`` and what recipe says."""
    device = run.accelerator.device
    before = judged(job.student, job.teacher, job.test, device)
    said = {**said, **recipe()}
    after = judged(job.student, job.teacher, job.test, device)
    table = before_and_after(f"Student and teacher on {len(job.rows.test)} held-out rows", before, after, JUDGED)
    return run.finish(job.student, job.tokenizer, {**said, "held_out": after, "before": before}, [table])


def streams(
    rows: Rows, names: list[str], tokenizer: Any, model: Any, cfg: Any
) -> tuple[Callable[..., Batches], list[Batch]]:
    """A maker of training streams (rows, share of mixup), and the batches to judge by."""
    types = _types(rows.test, model)

    def stream(some: list[Row], mixup: float | None = None) -> Batches:
        return labelled_batches(some, names, tokenizer, cfg.length, cfg.batch, cfg.seed, types, mixup)

    held = labelled_batches(rows.test, names, tokenizer, cfg.length, 1, 0, types, shuffle=False)
    return stream, in_turn(held, cfg.batch)


def fine_tune(
    name: str,
    model: nn.Module,
    stream: Iterable[Batch],
    steps: int,
    cfg: Any,
    out: Path | None = None,
    engine: Any = None,
    says: Callable[[Any], Source] = model_source,
) -> dict[str, float]:
    """Train the classifier ``model`` in place on the labels of ``stream``, as the stage ``name``, at ``cfg``'s rate.

    ``says`` makes it a source.
    """
    step = distill_step(says(model), lambda batch: Signals(), classes())
    return fit(Stage(name, step, {"model": model}, stream, steps, decaying(cfg), **stage_settings(cfg)), out, engine)


def decaying(cfg: Any) -> Optim:
    """The optimizer of ``cfg.lr``, ``cfg.warmup`` and ``cfg.weight_decay``, with a linear decay."""
    return Optim(cfg.lr, "linear", cfg.warmup, weight_decay=cfg.weight_decay)


def judged(student: nn.Module, teacher: nn.Module, test: list[Batch], device: Any) -> dict[str, float]:
    """Accuracy of both, agreement, and the logits' distance on ``test``."""
    goal = weighted(judged=(1.0, verdicts()), logits=(1.0, soft(soft_cross_entropy, on="row")))
    compare = distill_step(model_source(student.eval().to(device)), model_source(freeze(teacher).to(device)), goal)
    found = measure(compare, [to_device(batch, device) for batch in test])
    return {name.removeprefix("judged."): value for name, value in found.items()}


@torch.no_grad()
def pseudo_labelled(rows: Sequence[Row], job: Job, cfg: Any, device: Any) -> list[Row]:
    """``rows`` with the class that the job's teacher finds likeliest in each."""
    if not rows:
        return []
    says, types = model_source(freeze(job.teacher).to(device)), _types(rows, job.teacher)
    batches = labelled_batches(
        rows, job.classes, job.tokenizer, cfg.length, cfg.batch, types=types, shuffle=False
    ).take(-(-len(rows) // cfg.batch))
    found = [int(i) for batch in batches for i in says(to_device(batch, device)).need("logits").argmax(-1)]
    return [row._replace(label=job.classes[i]) for row, i in zip(rows, found, strict=False)]  # the last batch goes on


def _types(rows: Sequence[Row], model: Any) -> bool:
    """Whether ``model`` is told which of two texts a token belongs to."""
    return getattr(model.config, "type_vocab_size", 1) > 1 and rows[0].pair is not None
