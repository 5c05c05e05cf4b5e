"""ERNIE-Tiny: from a pre-trained teacher to a student of one task, changing one thing at a time.

Paper:      Su et al., 2021, arXiv 2106.02241.
Says:       distilling first in general and then on a task changes teacher, data and loss at once. Four stages that each
            change one of them lose less; the new one has the fine-tuned teacher speak about general text.
Parts:      objectives (latent, soft, classes) | data (stream, labelled, held) | models, students (classifiers)
Needs:      an encoder and the same encoder fine-tuned (or it is fine-tuned first), general text, and rows of which some
            have a class. Signals: hidden, qkv; logits in the last stage. Batch: ids, mask; labels, labelled.
Departures: no code was released and the paper's latent loss was not at hand: it is TinyBERT's (states, embeddings and
            attention scores), or MiniLM's relations. Each layer has a map of its own, without a bias (TinyBERT's code
            shares one with a bias). Padding counts nowhere, and attention is averaged per row, then over rows; with
            unequal numbers of heads, scores are summed over heads. Rows are not augmented; rows without a label may be
            given. Steps and rates are sized for the atlas.
Checked:    TinyBERT's released code: states, maps and scores of a BERT and its student, both losses, soft labels; where
            it errs (padding, the mean over classes), the formula.
Claim:      claims/ernie_tiny.py, at equal total steps: better than without either stage in between; nearer to the
            teacher's answers than two stages, but no more accurate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from limbeck.analyses.doctor import Findings, doctor, joined
from limbeck.analyses.measure import measure
from limbeck.atlas import corpora
from limbeck.core.batch import Batch, to_device
from limbeck.core.check import in_order, one_of, require
from limbeck.core.fit import fit
from limbeck.core.save import load_tensors, save_tensors
from limbeck.core.stage import Objective, Stage, Step, distill_step, stage_settings
from limbeck.data.held import hold_out
from limbeck.data.labelled import classes_in
from limbeck.data.read import read_text
from limbeck.data.stream import text_batches
from limbeck.evaluation.model import check_length
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.methods.encoders.classification import (
    ATLAS,
    JUDGED,
    Job,
    decaying,
    examined,
    fine_tune,
    judged,
    streams,
    task,
)
from limbeck.models.classifiers import load_kin
from limbeck.models.load import Dtype
from limbeck.objectives.classes import classes
from limbeck.objectives.latent import Latent, relations, states
from limbeck.objectives.tokens import soft
from limbeck.objectives.weighted import weighted
from limbeck.report.sections import Table, before_and_after
from limbeck.report.terminal import print_table
from limbeck.run import Run, begin, seed_all
from limbeck.sources.model import model_source
from limbeck.students.classifiers import classifier_student
from limbeck.students.layers import shape

Arm = Literal["general", "enhanced", "adaptive", "specific"]


class Switches(NamedTuple):
    """What a stage is made of."""

    teacher: Literal["pre-trained", "fine-tuned"]
    data: Literal["general", "task"]
    objective: Literal["latent", "latent + soft + hard"]


TABLE: dict[str, Switches] = {  # the method: each row differs from the one before in one entry
    "general": Switches("pre-trained", "general", "latent"),
    "enhanced": Switches("fine-tuned", "general", "latent"),
    "adaptive": Switches("fine-tuned", "task", "latent"),
    "specific": Switches("fine-tuned", "task", "latent + soft + hard"),
}
PROJECTIONS = "projections.safetensors"


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck ernie_tiny``."""

    out: Path = Path("runs/ernie_tiny")
    """Folder that the run writes."""
    teacher: str = ATLAS
    """Folder or Hub id of the pre-trained encoder (paper: BERT-base). A classifier will do without stage general."""
    tuned: str | None = None
    """Folder or Hub id of the same encoder fine-tuned on the task; by default the run fine-tunes it first."""
    teacher_dtype: Dtype = "float32"
    """Number format in which teachers are held; losses are computed in float32 whatever it is."""
    student: str = "half"
    """half of the teacher's layers and width; 4x312 (the paper's, at random as there); a folder or a Hub id. A run
    without stage specific writes an encoder, whose general distillation then serves for many tasks."""
    data: str | None = None
    """The task: jsonl or tsv of rows with text and label, or without a label, which the hard loss then leaves out. By
    default kinds of sentences of the atlas."""
    corpus: str | None = None
    """General text: jsonl, txt, parquet, folder or Hub id; by default, with the atlas's task, its documents."""
    stages: tuple[Arm, ...] = ("general", "enhanced", "adaptive", "specific")
    """Which stages, in the paper's order."""
    jumps: bool = False
    """Allow a stage that changes more than one of teacher, data and loss, because those between are left out."""
    latent: Literal["states", "relations"] = "states"
    """states: TinyBERT's, every layer with its share of the teacher's; relations: MiniLM's, version 2, last layers."""
    relation_heads: int = 8
    """relations: their heads; they have to divide both widths."""
    weight_latent: float = 1.0
    """specific: weight of the latent loss; ours, as the paper's is not at hand."""
    weight_soft: float = 1.0
    """specific: weight of the cross-entropy to the teacher; ours."""
    weight_hard: float = 1.0
    """specific: weight of the cross-entropy to the label; ours."""
    temperature: float = 1.0
    """specific: softens teacher and student; TinyBERT's code: 1."""
    teacher_steps: int = 100
    """Optimizer steps that fine-tune the teacher, where --tuned is not given; 100 suit the atlas."""
    general_steps: int = 200
    """Optimizer steps of stage general; TinyBERT: 3 epochs of a corpus. Once for all tasks."""
    enhanced_steps: int = 100
    """Optimizer steps of stage enhanced; ours: fewer, as it is done for every task."""
    adaptive_steps: int = 100
    """Optimizer steps of stage adaptive; TinyBERT: 10 to 20 epochs."""
    steps: int = 100
    """Optimizer steps of stage specific; TinyBERT: 3 epochs."""
    batch: int = 32
    """Rows per batch; TinyBERT: 32 on tasks, 256 in general."""
    length: int = 64
    """Tokens per row; TinyBERT: 128 in general, 64 or 128 on tasks."""
    lr: float = 1e-3
    """Peak learning rate of each stage, with a warm-up and a linear decay of its own; TinyBERT: 1e-4 in general, 5e-5
    and 3e-5 on tasks. 1e-3 suits the atlas's small models."""
    warmup: float = 0.1
    """Share of a stage's steps that warm up; TinyBERT's code."""
    weight_decay: float = 0.01
    """Decoupled weight decay, not of biases and norms; TinyBERT's code."""


def latent(student: nn.Module, teacher: nn.Module, cfg: Config) -> Latent:
    """The comparison that ``cfg.latent`` names, with untrained maps."""
    one_of(cfg.latent, ("states", "relations"), "--latent")
    both = shape(student), shape(teacher)
    return states(*both) if cfg.latent == "states" else relations(*both, cfg.relation_heads)


def objective(compared: str, inner: Objective, cfg: Config) -> Objective:
    """L_latent, or for the last stage the weighted sum with L_soft and L_hard; a weight of 0 leaves its part out."""
    if compared == "latent":
        return weighted(latent=(1.0, inner))
    parts: dict[str, tuple[float, Objective]] = {
        "latent": (cfg.weight_latent, inner),
        "soft": (cfg.weight_soft, soft(soft_cross_entropy, cfg.temperature, on="row")),
        "hard": (cfg.weight_hard, classes()),
    }
    for name, (weight, _) in parts.items():
        require(weight >= 0, f"--weight-{name} {weight}: expected a weight of at least 0")
    wanted = {name: part for name, part in parts.items() if part[0] > 0}
    require(wanted, "ernie_tiny: all weights are 0, so the last stage has nothing to learn; raise one")
    return weighted(**wanted)


def compare(now: Switches, student: Any, teacher: Any, inner: Latent, cfg: Config) -> Step:
    """The step of a stage; for the latent loss alone, both models run without their heads."""
    both = (student.base_model, teacher.base_model) if now.objective == "latent" else (student, teacher)
    ours, theirs = (model_source(model, **asked) for model, asked in zip(both, inner.asked, strict=True))
    return distill_step(ours, theirs, objective(now.objective, inner.goal, cfg))


def ernie_tiny(
    student: Any,
    teachers: Mapping[str, Any],
    data: Mapping[str, Iterable[Batch]],
    cfg: Config,
    inner: Latent | None = None,
    out: Path | None = None,
    engine: Any = None,
    heard: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Take ``student``, a classifier, through ``cfg.stages`` in place: ``TABLE`` says which of ``teachers``
    ("pre-trained", "fine-tuned") speaks about which of ``data`` ("general", "task") and what is compared.

    Weights and the maps of ``inner`` go from stage to stage; optimizer and schedule begin anew. ``out`` and ``engine``
    go to ``fit``, whose words are returned per stage; ``heard`` is called after each with its name.
    """
    inner = inner or latent(student, teachers["fine-tuned"], cfg)
    maps = {"projections": inner.links} if any(True for _ in inner.links.parameters()) else {}
    said: dict[str, Any] = {}
    for name in ordered(cfg.stages, cfg.jumps):
        now = TABLE[name]
        stage = Stage(
            name,
            compare(now, student, teachers[now.teacher], inner, cfg),
            train={"student": student, **maps},
            stream=data[now.data],
            steps=steps_of(name, cfg),
            optim=decaying(cfg),
            frozen={"teacher": teachers[now.teacher]},
            **stage_settings(cfg),
        )
        said[name] = {**now._asdict(), **fit(stage, out, engine)}
        heard(name)
    return said


def ordered(stages: tuple[str, ...], jumps: bool = False) -> list[str]:
    """``stages`` in the paper's order; without ``jumps``, each changes one thing only."""
    chosen = in_order(stages, TABLE, "--stages")
    for one, other in pairwise(chosen):
        left_out = list(TABLE)[list(TABLE).index(one) + 1 : list(TABLE).index(other)]
        require(
            jumps or not left_out,
            f"--stages: from {one} to {other} more than one of teacher, data and loss would change; add "
            f"{' and '.join(left_out)}, or give --jumps to compare",
        )
    return chosen


def steps_of(stage: str, cfg: Config) -> int:
    """How many optimizer steps ``stage`` takes."""
    name = "steps" if stage == "specific" else f"{stage}_steps"
    steps: int = getattr(cfg, name)
    require(steps >= 1, f"--{name.replace('_', '-')} {steps}: expected a whole number of at least 1")
    return steps


def main(cfg: Config) -> Path:
    """Take a student of ``cfg.teacher`` through the stages; writes it and its report to ``cfg.out``."""
    plan = {name: (*TABLE[name], steps_of(name, cfg)) for name in ordered(cfg.stages, cfg.jumps)}
    steps_of("teacher", cfg)
    seed_all(cfg.seed)
    rows = task(cfg.data, cfg.seed)
    base, tuned = load_kin(cfg.teacher, cfg.tuned, classes_in(rows.train), cfg.teacher_dtype)
    require(
        base is not None or "general" not in cfg.stages,
        f"--teacher {cfg.teacher} is fine-tuned already, and stage general hears the encoder that it was made from; "
        "give that as --teacher and this one as --tuned, or --stages enhanced adaptive specific",
    )
    teacher, tokenizer = tuned.model, tuned.tokenizer
    teachers = {"fine-tuned": teacher, **({} if base is None else {"pre-trained": base})}
    student = classifier_student(cfg.student, teacher if base is None else base, tokenizer, tuned.classes)
    check_length(cfg.length, teacher=teacher, student=student)
    inner = taken_over(latent(student, teacher, cfg), Path(cfg.student) / PROJECTIONS)
    objective("latent + soft + hard", inner.goal, cfg)  # refuses weights that make no sense
    stream, test = streams(rows, tuned.classes, tokenizer, teacher, cfg)
    data, held = general_text(cfg, tokenizer)
    run = begin(cfg, "ernie_tiny")
    engine, said = run.accelerator, {}
    job = Job(student, teacher, tokenizer, tuned.classes, tuned.tuned, rows, stream, test)
    run.heed(joined([examined(job, engine.device), *examined_text(job, base, held, engine.device)]))
    if engine.is_main_process:
        print_table(_plan(plan))
    if not tuned.tuned:
        known = stream([row for row in rows.train if row.label is not None])
        said["teacher"] = fine_tune("teacher", teacher, known, cfg.teacher_steps, cfg, run.stage_dir, engine)
    data, held = data | {"task": stream(rows.train)}, held | {"task": test}
    before = judged(student, teacher, test, engine.device)
    found = {"start": distances(student, teachers, held, inner, cfg, engine.device)}

    def heard(name: str) -> None:
        found[name] = distances(student, teachers, held, inner, cfg, engine.device)

    said |= ernie_tiny(student, teachers, data, cfg, inner, run.stage_dir, engine, heard)
    if "specific" not in said:  # the head has learned nothing
        if engine.is_main_process:
            save_tensors(run.out / PROJECTIONS, inner.links.state_dict())
        return run.finish(student.base_model, tokenizer, {**said, "distance": found}, [_plan(plan, found)])
    after = judged(student, teacher, test, engine.device)
    measured = {"held_out": after, "before": before, "distance": found}
    table = before_and_after(f"Student and teacher on {len(rows.test)} held-out rows", before, after, JUDGED)
    return run.finish(student, tokenizer, {**said, **measured}, [table, _plan(plan, found)])


def examined_text(job: Job, base: Any, held: Mapping[str, list[Batch]], device: Any) -> list[Findings]:
    """What the doctor finds in the teacher that is not fine-tuned, and in the text that it is heard on."""
    if base is None:
        return []
    both = model_source(job.student.base_model, hidden=[-1]), model_source(base.to(device).eval(), hidden=[-1])
    first = [to_device(batch, device) for batch in held.get("general", [])[:1]]
    return [doctor(*both, job.tokenizer, batches=first, on="mask", teacher_name="pre-trained teacher")]


def general_text(cfg: Config, tokenizer: Any) -> tuple[dict[str, Any], dict[str, list[Batch]]]:
    """The stream of general text and batches held out of it, both as ``general``; empty if no stage reads it."""
    if all(TABLE[name].data != "general" for name in cfg.stages):
        return {}, {}
    require(
        cfg.corpus or cfg.data is None,
        "ernie_tiny: stages general and enhanced read general text, not the task's; give it as --corpus, or "
        "--stages adaptive specific",
    )
    texts = read_text(cfg.corpus) if cfg.corpus else corpora.documents("en", 2000, cfg.seed)
    split = hold_out(text_batches(texts, tokenizer, cfg.length, cfg.batch, cfg.seed))
    return {"general": split.stream}, {"general": split.batches}


def taken_over(inner: Latent, saved: Path) -> Latent:
    """``inner`` with the maps that a run of stage general left beside its student, if there are any."""
    if saved.exists():
        maps = load_tensors(saved)[0]
        ours = {name: value.shape for name, value in inner.links.state_dict().items()}
        theirs = {name: value.shape for name, value in maps.items()}
        require(ours == theirs, f"{saved} maps between other layers or widths than this student's and teacher's")
        inner.links.load_state_dict(maps)
    return inner


def distances(
    student: Any, teachers: Mapping[str, Any], held: Mapping[str, list[Batch]], inner: Latent, cfg: Config, device: Any
) -> dict[str, float]:
    """The latent loss on rows that nobody trains on, for each pair of teacher and data that the stages have."""
    for model in (student, inner.links, *teachers.values()):
        model.to(device).eval()
    found = {}
    for now in dict.fromkeys(TABLE[name]._replace(objective="latent") for name in ordered(cfg.stages, cfg.jumps)):
        step = compare(now, student, teachers[now.teacher], inner, cfg)
        said = measure(step, [to_device(batch, device) for batch in held[now.data]])
        found[f"{now.data} data, {now.teacher} teacher"] = sum(said.values())
    return found


def _plan(plan: Mapping[str, tuple[Any, ...]], found: Mapping[str, Mapping[str, float]] | None = None) -> Table:
    """Who teaches in each stage, on what, by which loss; and how far the student then was."""
    columns = ["stage", "teacher", "data", "loss", "steps"]
    if found is None:
        return Table("The stages: each changes one thing", columns, [(name, *row) for name, row in plan.items()])
    rows = [(name, *plan.get(name, ("", "", "", None)), *values.values()) for name, values in found.items()]
    note = "Right columns: the latent loss after the stage, on held-out rows (of a corpus under four batches, on all)."
    return Table("The stages: each changes one thing", [*columns, *found["start"]], rows, note)
