"""Well-read students: pre-train the small model first, then distil, then fine-tune.

Paper:      Turc et al., 2019, arXiv 1908.08962.
Says:       a student that has read before it is taught, by plain soft labels on unlabelled text of the task, rivals
            elaborate distillation; reading and distilling add up, even on the same text.
Parts:      data (stream, labelled) | objectives (hard, soft) | students (sizes, classifiers)
Needs:      an encoder as teacher, rows of which some have a class, and text. Signals: logits. Batch: ids, mask,
            targets, answer; labels, labelled.
Departures: next sentences are not predicted. The teacher's tokenizer is the student's. Steps and rates are sized for
            the atlas. A student that is loaded rather than made can read on, or leave that stage out.
Checked:    parameter counts of the 24 sizes; the gradient of the distillation loss on logits is (q - p) / batch.
Claim:      claims/well_read_students.py, distilled with and without reading first; it does not hold there. 300 steps of
            reading, on the task's own 6,000 sentences, leave a student worse off than a random start, whether it is
            distilled or fine-tuned after: at that length reading teaches too little, and longer was not tried.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from limbeck.analyses.doctor import Findings, doctor
from limbeck.core.batch import Batch, to_device
from limbeck.core.check import in_order
from limbeck.core.fit import fit
from limbeck.core.signals import Signals
from limbeck.core.stage import Stage, distill_step, stage_settings
from limbeck.data.labelled import Rows, with_labels
from limbeck.data.read import read_text
from limbeck.data.stream import Batches, mlm_batches
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.methods.encoders.classification import (
    ATLAS,
    Job,
    decaying,
    fine_tune,
    job_of,
    task,
    taught,
    with_tuned_teacher,
)
from limbeck.models.load import Dtype
from limbeck.objectives.tokens import hard, soft
from limbeck.run import Run, begin
from limbeck.sources.model import model_source

Arm = Literal["pretrain", "distil", "finetune"]
ARMS: tuple[Arm, ...] = ("pretrain", "distil", "finetune")


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck well_read_students``."""

    out: Path = Path("runs/well_read_students")
    """Folder that the run writes."""
    teacher: str = ATLAS
    """Folder or Hub id of a fine-tuned classifier (paper: BERT-large), or of an encoder, which is fine-tuned first."""
    teacher_dtype: Dtype = "float32"
    """Number format in which a fine-tuned teacher is held; losses are computed in float32 whatever it is."""
    student: str = "bert-tiny"
    """bert-tiny, -mini, -small, -medium, -base, or any of the 24 as bert-4x256; 6x384; half; a folder or a Hub id."""
    stages: tuple[Arm, ...] = ARMS
    """What the student goes through, in the paper's order. Its arms: FT finetune; PF pretrain finetune; D distil;
    PD pretrain distil; PD+F all three."""
    data: str | None = None
    """jsonl or tsv of rows with text and label; rows without a label are for distilling. By default the atlas's."""
    labels: int | None = None
    """How many of the labelled rows keep their label; the others are distilled on only. By default all of the user's
    and 300 of the atlas's."""
    corpus: str | None = None
    """Text to pre-train on: jsonl, txt, parquet, folder or Hub id; by default the rows' own text, as in the paper's
    test of compounding."""
    teacher_steps: int = 200
    """Optimizer steps that fine-tune a teacher that is no classifier yet; paper: 4 epochs."""
    pretrain_steps: int = 150
    """Optimizer steps of masked words; ours, sized for the atlas."""
    steps: int = 200
    """Optimizer steps of distillation; ours, sized for the atlas."""
    finetune_steps: int = 50
    """Optimizer steps of fine-tuning; paper: 4 epochs."""
    batch: int = 32
    """Rows per batch; the released grid: 8 to 128."""
    length: int = 64
    """Tokens per row; paper: 512 in pre-training. 64 suit the atlas."""
    lr: float = 3e-4
    """Peak learning rate, linear decay; the released grid: 3e-5 to 3e-4, and small students need the most."""
    warmup: float = 0.1
    """Share of the steps that warm up; BERT's code."""
    weight_decay: float = 0.01
    """Decoupled weight decay; BERT's code."""


def pretrain(
    student: Any, stream: Iterable[Batch], cfg: Config, out: Path | None = None, engine: Any = None
) -> dict[str, float]:
    """Teach ``student`` (a classifier) masked words, in place; the head for words is thrown away."""
    reader = with_words(student)
    step = distill_step(model_source(reader), lambda batch: Signals(), hard())
    settings = {"optim": decaying(cfg), **stage_settings(cfg)}
    return fit(Stage("pretrain", step, {"student": reader}, stream, cfg.pretrain_steps, **settings), out, engine)


def distil(
    student: nn.Module,
    teacher: nn.Module,
    stream: Iterable[Batch],
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
) -> dict[str, float]:
    """Soft cross-entropy to ``teacher``, summed over classes, averaged over rows; temperature 1, no label."""
    step = distill_step(model_source(student), model_source(teacher), soft(soft_cross_entropy, on="row"))
    settings = {"optim": decaying(cfg), "frozen": {"teacher": teacher}, **stage_settings(cfg)}
    return fit(Stage("distil", step, {"student": student}, stream, cfg.steps, **settings), out, engine)


def well_read_students(
    student: nn.Module,
    teacher: nn.Module,
    text: Iterable[Batch],
    transfer: Iterable[Batch],
    labelled: Iterable[Batch],
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
) -> dict[str, Any]:
    """Take ``student`` through ``cfg.stages`` in place: ``text`` to read, ``transfer`` to distil on, ``labelled`` rows.

    ``out`` and ``engine`` go to ``fit``, whose words are returned per stage.
    """
    stages = {
        "pretrain": lambda: pretrain(student, text, cfg, out, engine),
        "distil": lambda: distil(student, teacher, transfer, cfg, out, engine),
        "finetune": lambda: fine_tune("finetune", student, labelled, cfg.finetune_steps, cfg, out, engine),
    }
    return {name: stages[name]() for name in in_order(cfg.stages, ARMS, "--stages")}


def with_words(student: Any) -> Any:
    """A masked language model on the body of ``student``, whose parameters it shares, with a new head."""
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_config(student.config)
    setattr(model, model.base_model_prefix, student.base_model)
    model.tie_weights()
    return model


def main(cfg: Config) -> Path:
    """Make a student of ``cfg.teacher`` well read; writes it and its report to ``cfg.out``."""
    in_order(cfg.stages, ARMS, "--stages")  # refuses what is unknown
    rows = some_labelled(cfg)
    job = job_of(cfg, rows)
    texts = read_text(cfg.corpus) if cfg.corpus else (text for row in rows.train for text in row[:2] if text)
    words = mlm_batches(texts, job.tokenizer, cfg.length, cfg.batch, cfg.seed)
    run = begin(cfg, "well_read_students")
    read = [examined_text(job, words, run.accelerator.device)] if "pretrain" in cfg.stages else []
    job, said = with_tuned_teacher(job, cfg, run, read)
    transfer = job.stream([row._replace(label=None) for row in rows.train])
    known = job.stream([row for row in rows.train if row.label is not None])

    def recipe() -> dict[str, Any]:
        both = job.student, job.teacher
        return well_read_students(*both, words, transfer, known, cfg, run.stage_dir, run.accelerator)

    return taught(job, run, recipe, said)


def examined_text(job: Job, words: Batches, device: Any) -> Findings:
    """What the doctor finds in the text to read; the head for words is not there yet."""
    return doctor(model_source(job.student.to(device)), None, job.tokenizer, batches=[to_device(words.at(0), device)])


def some_labelled(cfg: Config) -> Rows:
    """The user's rows or the atlas's, parted, with ``cfg.labels`` labels left to train by."""
    few = 300 if cfg.labels is None and cfg.data is None else cfg.labels
    return with_labels(task(cfg.data, cfg.seed, 3000), few)
