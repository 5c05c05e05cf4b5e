"""Romanian DistilBERTs: one masked LM from several teachers, and how loyal it is to each.

Paper:      Avram et al., LREC 2022, arXiv 2112.12650; loyalty after Xu et al., EMNLP 2021, "Beyond preserved accuracy".
Says:       a student with half of the layers learns from one BERT or from the mean of several, and is then asked how
            often it agrees with each teacher and how near its distributions are.
Parts:      sources.ensemble (mean of probabilities) | objectives (soft, hard, hidden, over_members) | students.layers
            (keep_layers) | analyses.loyalty
Needs:      masked LMs of one vocabulary, and of one width unless --cosine 0. Signals: logits, hidden. Batch: ids, mask,
            targets, answer.
Departures: the paper's teachers have two vocabularies, and how it joined them is not recoverable from what was
            released: teachers that differ are refused. Token-type embeddings are kept. The three weights and the
            temperature are DistilBERT's; whether the paper changed them is not known. Loyalty is measured on masked
            tokens, before any task.
Checked:    loss and its three terms against an independent float64 computation; loyalty against SciPy.
Claim:      claims/romanian_multi_teacher.py: who is loyal to whom, against one teacher and none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.analyses.doctor import doctor, joined
from limbeck.analyses.loyalty import Loyalty
from limbeck.atlas import corpora
from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError, require
from limbeck.core.fit import fit
from limbeck.core.signals import Source
from limbeck.core.stage import Objective, Optim, Stage, distill_step, freeze
from limbeck.data.held import hold_out
from limbeck.data.read import read_text
from limbeck.data.stream import mlm_batches
from limbeck.models.load import Dtype, load_model
from limbeck.models.tokenizers import check_same_tokenizer
from limbeck.objectives.across import pieces
from limbeck.objectives.features import hidden
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import over_members, weighted
from limbeck.report.sections import Table
from limbeck.run import Run, begin, seed_all
from limbeck.sources.ensemble import MeanSource, mean_source
from limbeck.sources.model import model_source
from limbeck.students.load import load_student

AT_ONCE = 256  # positions whose distributions over the vocabulary stand in memory together, in float64


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck romanian_multi_teacher``."""

    out: Path = Path("runs/romanian_multi_teacher")
    """Folder that the run writes."""
    teacher: tuple[str, ...] = ("limbeck:atlas/weights/encoder-a", "limbeck:atlas/weights/encoder-b")
    """Folders or Hub ids of masked LMs with one vocabulary; by default the two that ship with limbeck."""
    teacher_dtype: Dtype = "float32"
    """Number format in which the teacher is held; losses are computed in float32 whatever it is."""
    student: str = "every-other"
    """every-other: a copy of half of the first teacher's layers (paper); 6x768 or half: anew; a folder or Hub id."""
    data: str | None = None
    """Text: jsonl, txt, parquet, folder or Hub id (paper: OSCAR and Wikipedia); by default the atlas in Romanian."""
    weights: tuple[float, ...] = ()
    """Weight of each teacher in the mean; by default uniform."""
    soft: float = 5.0
    """Weight of the KL to the teachers' mean; DistilBERT."""
    hard: float = 2.0
    """Weight of the masked-LM loss; DistilBERT."""
    cosine: float = 1.0
    """Weight of 1 - cosine of the last hidden states; DistilBERT."""
    temperature: float = 2.0
    """Softens teachers and student; DistilBERT."""
    masking: float = 0.15
    """Share of tokens to predict; BERT and DistilBERT."""
    steps: int = 200
    """Optimizer steps; 200 suit the atlas, the paper trains for epochs of 60 GB."""
    batch: int = 32
    """Rows per batch."""
    length: int = 96
    """Tokens per row; BERT: 512. 96 suit the shipped encoders."""
    lr: float = 5e-4
    """Peak learning rate, linear decay; DistilBERT's script."""
    warmup: float = 0.05
    """Share of the steps that warm up; DistilBERT's script."""


def multi_teacher_loss(cfg: Config) -> Objective:
    """tau^2 KL(mean of teachers || student) and cross-entropy at masked tokens, mean 1 - cosine at all real tokens."""
    parts: dict[str, tuple[float, Objective]] = {
        "soft": (cfg.soft, soft(temperature=cfg.temperature, rescale=True)),
        "hard": (cfg.hard, hard()),
        "cosine": (cfg.cosine, over_members(hidden("cosine"), cfg.weights or None)),
    }
    for name, (weight, _) in parts.items():
        require(weight >= 0, f"--{name} {weight}: expected a weight of at least 0")
    wanted = {name: part for name, part in parts.items() if part[0] > 0}
    require(wanted, "romanian_multi_teacher: all three weights are 0, so there is nothing to learn; raise one")
    return weighted(**wanted)


def mean_teacher(teachers: Sequence[nn.Module], cfg: Config) -> MeanSource:
    """The teachers' mean distribution at the configured temperature, with their last hidden states beside it."""
    says = [model_source(teacher, hidden=_last(cfg)) for teacher in teachers]
    return mean_source(says, cfg.weights or None, cfg.temperature)


def romanian_multi_teacher(
    student: nn.Module,
    teachers: Sequence[nn.Module],
    stream: Iterable[Batch],
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
) -> dict[str, float]:
    """Train ``student`` in place towards the mean of ``teachers``; ``out`` and ``engine`` go to ``fit``."""
    stage = Stage(
        "distil",
        distill_step(model_source(student, hidden=_last(cfg)), mean_teacher(teachers, cfg), multi_teacher_loss(cfg)),
        train={"student": student},
        stream=stream,
        steps=cfg.steps,
        optim=Optim(cfg.lr, "linear", cfg.warmup),
        accumulate=cfg.accumulate,
        frozen={f"teacher {number}": teacher for number, teacher in enumerate(teachers, 1)},
        seed=cfg.seed,
        save_every=cfg.save_every,
    )
    return fit(stage, out, engine)


@torch.no_grad()
def masked_loyalty(
    student: Source, teachers: Mapping[str, Source], batches: Iterable[Batch], weights: Sequence[float] | None = None
) -> dict[str, dict[str, float]]:
    """Label and probability loyalty on masked tokens, to each of ``teachers`` and their mean, beside all accuracies."""
    meter = Loyalty(weights)
    for batch in batches:
        said = {name: source(batch) for name, source in {"": student, **teachers}.items()}
        for part in pieces(batch["answer"], AT_ONCE):
            each = {name: signals.logits_at(part).cpu().double().softmax(-1) for name, signals in said.items()}
            meter.add(each.pop(""), each, batch["targets"][part].cpu())
    return meter.result()


def check_teachers(tokenizers: Mapping[str, Any]) -> None:
    """Refuse teachers whose vocabularies differ: their distributions cannot be averaged token by token."""
    (first, ours), *others = tokenizers.items()
    for name, theirs in others:
        try:
            check_same_tokenizer(theirs, ours)
        except LimbeckError as error:
            raise LimbeckError(
                f"the teachers {first} and {name} cannot be averaged token by token: {error}; "
                "distil from each apart, or take teachers of one vocabulary"
            ) from None


def main(cfg: Config) -> Path:
    """Distil the teachers into ``cfg.student`` on ``cfg.data``; writes the student, its loyalty and a report."""
    multi_teacher_loss(cfg)  # refuses weights that make no sense
    seed_all(cfg.seed)
    loaded = _teachers(cfg)
    check_teachers({name: tokenizer for name, (_, tokenizer) in loaded.items()})
    teachers = {name: freeze(model) for name, (model, _) in loaded.items()}
    first, tokenizer = next(iter(loaded.values()))
    student = load_student(cfg.student, first, tokenizer, "masked").eval()
    texts = read_text(cfg.data) if cfg.data else corpora.documents("ro", 2000, cfg.seed)
    split = hold_out(mlm_batches(texts, tokenizer, cfg.length, cfg.batch, cfg.seed, cfg.masking))
    mean_teacher(list(teachers.values()), cfg)  # refuses weights that do not belong to the teachers
    run = begin(cfg, "romanian_multi_teacher")
    device = run.accelerator.device
    says = {name: model_source(teacher.to(device)) for name, teacher in teachers.items()}
    asked = (model_source(student.to(device)), says, split.on(device), cfg.weights or None)
    run.heed(
        joined(
            doctor(asked[0], said, tokenizer, loaded[name][1], split.on(device), teacher_name=f"teacher {name}")
            for name, said in says.items()
        )
    )
    before = masked_loyalty(*asked)
    said = romanian_multi_teacher(student, list(teachers.values()), split.stream, cfg, run.stage_dir, run.accelerator)
    after = masked_loyalty(*asked)
    metrics = {**said, split.name: after, "before": before}
    return run.finish(student, tokenizer, metrics, [_table(before, after, split.rows)], base_model=next(iter(teachers)))


def _teachers(cfg: Config) -> dict[str, tuple[Any, Any]]:
    """Models and tokenizers by name."""
    require(cfg.teacher, "--teacher: expected at least one folder or Hub id of a masked LM")
    require(len(set(cfg.teacher)) == len(cfg.teacher), f"--teacher: a teacher is named twice in {list(cfg.teacher)}")
    return {name: load_model(name, "masked", cfg.teacher_dtype) for name in cfg.teacher}


def _last(cfg: Config) -> list[int]:
    return [-1] if cfg.cosine else []


def _table(before: Mapping[str, Any], after: Mapping[str, Any], rows: str) -> Table:
    """Loyalty to each teacher and to their mean, before and after training, beside the accuracies."""
    columns = ("", "label loyalty before", "after", "probability loyalty before", "after", "accuracy before", "after")
    sides = [(measure, side) for measure in ("label", "probability", "accuracy") for side in (before, after)]
    cells = [(name, *(side[name].get(measure) for measure, side in sides)) for name in after]
    note = "Probability loyalty is 1 - Jensen-Shannon distance, base 2. Loyalty says nothing about being right."
    return Table(f"Loyalty on masked tokens, {rows}", columns, cells, note)
