"""MiniLM: the self-attention of one teacher layer, for students of any depth and width.

Paper:      version 1: Wang et al., NeurIPS 2020, arXiv 2002.10957; version 2: Findings of ACL 2021, arXiv 2012.15828.
Says:       a student that relates tokens as one layer of its teacher does needs no other signal: who attends to whom
            and how values resemble each other (version 1), or how queries, keys and values each do (version 2).
Parts:      sources.model (q, k, v by hooks) | objectives (relation, weighted) | students.layers (smaller, keep_layers)
Needs:      encoders or decoders that share a tokenizer; version 1: as many heads. Signals: qkv. Batch: ids, mask.
Departures: padding is left out of rows and columns wherever it stands, and each row weighs the same (the papers are
            silent). Attention of decoders is compared under the causal mask, other relations in full. Queries and keys
            are taken before a rotary embedding turns them. Steps and rates are sized for small corpora.
Checked:    a public re-implementation (the authors released none): values and gradients of both versions on q, k and v
            and through two BERT encoders.
Claim:      claims/minilm.py, against attention alone, hidden states and no distillation. Relations come nearer; a probe
            on SST-2 is not better for it, and hidden-state MSE's is better in every seed. The teacher's own probe is
            no better than its students', so that this says little.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from limbeck.analyses.doctor import doctor
from limbeck.analyses.measure import measure
from limbeck.atlas import corpora
from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError, require
from limbeck.core.fit import fit
from limbeck.core.stage import Objective, Optim, Stage, distill_step, freeze
from limbeck.data.held import hold_out
from limbeck.data.read import read_text
from limbeck.data.stream import text_batches
from limbeck.models.load import Dtype, load_model
from limbeck.objectives.relations import relation
from limbeck.objectives.weighted import weighted
from limbeck.report.sections import before_and_after
from limbeck.run import Run, begin, seed_all
from limbeck.sources.model import model_source
from limbeck.students.layers import keep_layers, shape, smaller
from limbeck.students.load import load_student


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck minilm``."""

    out: Path = Path("runs/minilm")
    """Folder that the run writes."""
    teacher: str = "limbeck:atlas/weights/encoder-a"
    """Folder or Hub id of an encoder or decoder; by default an encoder that ships with limbeck."""
    teacher_dtype: Dtype = "float32"
    """Number format in which the teacher is held; losses are computed in float32 whatever it is."""
    student: str = "half"
    """A size like 6x384 (the teacher's architecture anew), half of both, a folder or a Hub id."""
    data: str | None = None
    """Text without labels: jsonl, txt, parquet, folder or Hub id; by default English text of the atlas."""
    version: Literal[1, 2] = 1
    """1: attention and value relations, equal heads. 2: query, key and value relations over relation heads."""
    relation_heads: int = 48
    """Relation heads of version 2; its paper: 48 for base teachers, 64 for large ones."""
    teacher_layer: int | None = None
    """Teacher layer from 1; by default the last. Version 2: 21 of 24 for BERT-large, 19 of 24 for RoBERTa-large."""
    assistant: Literal["auto", "never", "always"] = "auto"
    """A teacher assistant in between; auto: for students of at most half the layers and half the width (version 1)."""
    steps: int = 200
    """Optimizer steps, per model; version 1: 400,000. 200 suit the atlas."""
    batch: int = 32
    """Rows per batch; version 1: 256 to 1024."""
    length: int = 64
    """Tokens per row; version 1: 512."""
    lr: float = 5e-4
    """Peak learning rate; version 1: 5e-4 at width 768, 3e-4 or 4e-4 for others. Linear decay."""
    warmup: float = 0.01
    """Share of the steps, or number of them, that warm up; version 1: 4,000 of 400,000."""
    weight_decay: float = 0.01
    """Decoupled weight decay; version 1."""


def relations(version: int, heads: int, causal: bool = False) -> Objective:
    """The objective: each relation weighs 1 and is averaged over heads and queries of a row, then over rows."""
    if version == 1:  # section 3.1 (attention) and 3.2 (value relation)
        return weighted(attention=(1.0, relation("q", "k", causal=causal)), values=(1.0, relation("v", "v")))
    pairs = {"queries": "q", "keys": "k", "values": "v"}
    return weighted(**{name: (1.0, relation(x, x, heads=heads)) for name, x in pairs.items()})


def wants_assistant(rule: str, student: nn.Module, teacher: nn.Module) -> bool:
    """Version 1, section 3.3: an assistant if M <= L / 2 and d' <= d / 2; ``rule`` "always" or "never" overrules."""
    (layers, width, _), (teacher_layers, teacher_width, _) = shape(student), shape(teacher)
    small = 2 * layers <= teacher_layers and 2 * width <= teacher_width
    return rule == "always" or (rule == "auto" and small)


def minilm(
    student: nn.Module,
    teacher: nn.Module,
    stream: Iterable[Batch],
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
) -> dict[str, Any]:
    """Train ``student`` in place; ``out`` and ``engine`` go to ``fit``, whose words are returned per stage.

    The assistant has the teacher's depth and the student's width, learns from the teacher, and teaches in its place.
    """
    check_pair(student, teacher, cfg)
    said = {}
    if wants_assistant(cfg.assistant, student, teacher):
        (_, width, heads), layers = shape(student), shape(teacher)[0]
        assistant = smaller(teacher, layers, width, heads).float()
        said["assistant"] = _distil("assistant", assistant, teacher, stream, cfg, out, engine)
        teacher, cfg = assistant, replace(cfg, teacher_layer=None)
    return {**said, "student": _distil("student", student, teacher, stream, cfg, out, engine)}


def sources(student: nn.Module, teacher: nn.Module, cfg: Config) -> tuple[Any, Any, Objective]:
    """Student and teacher as sources of q, k, v at their layers, and the objective that compares them."""
    layer = cfg.teacher_layer or shape(teacher)[0]
    goal = relations(cfg.version, cfg.relation_heads, causal=reads_backwards_only(teacher))
    return model_source(student, qkv=[-1]), model_source(teacher, qkv=[layer]), goal


@torch.no_grad()
def reads_backwards_only(model: Any) -> bool:
    """Whether a token sees only what stands before it, found out by changing the second of two tokens."""
    device, was_training = next(model.parameters()).device, model.training
    last = model.config.vocab_size - 1
    ids = torch.tensor([[last, last], [last, last - 1]], device=device)
    states = model_source(model.eval(), hidden=[-1])({"ids": ids, "mask": torch.ones_like(ids).bool()}).need("hidden")
    model.train(was_training)
    first, other = next(iter(states.values()))[:, 0]
    return bool(torch.allclose(first, other, atol=1e-6))


def check_pair(student: Any, teacher: Any, cfg: Config) -> None:
    """Refuse a layer that does not exist, and heads that cannot be compared, before anything is trained."""
    (_, width, heads), (layers, teacher_width, teacher_heads) = shape(student), shape(teacher)
    layer = cfg.teacher_layer or layers
    for model in (student, teacher):
        require(not model.config.is_encoder_decoder, "minilm compares encoders or decoders, not encoder-decoders")
    require(1 <= layer <= layers, f"--teacher-layer {layer}: the teacher has layers 1 to {layers}")
    if cfg.version == 1 and heads != teacher_heads:
        raise LimbeckError(
            f"version 1 needs equal numbers of heads, but the student has {heads} and the teacher {teacher_heads}; "
            "use --version 2 with --relation-heads that divide both widths"
        )
    require(cfg.relation_heads >= 1, f"--relation-heads {cfg.relation_heads}: expected a whole number of at least 1")
    if cfg.version == 2 and (width % cfg.relation_heads or teacher_width % cfg.relation_heads):
        raise LimbeckError(
            f"--relation-heads {cfg.relation_heads}: has to divide the student's width {width} and the teacher's "
            f"{teacher_width}"
        )


def main(cfg: Config) -> Path:
    """Distil ``cfg.teacher`` into ``cfg.student`` on ``cfg.data``; writes the student and its report to ``cfg.out``."""
    seed_all(cfg.seed)
    teacher, tokenizer = load_model(cfg.teacher, "base", cfg.teacher_dtype)
    student = load_student(cfg.student, teacher, tokenizer, "base")
    texts = read_text(cfg.data) if cfg.data else corpora.documents("en", 2000, cfg.seed)
    split = hold_out(text_batches(texts, tokenizer, cfg.length, cfg.batch, cfg.seed))
    check_pair(student, teacher, cfg)
    run = begin(cfg, "minilm")
    device = run.accelerator.device
    ours, theirs, goal = sources(student.eval().to(device), freeze(teacher).to(device), cfg)
    run.heed(doctor(ours, theirs, tokenizer, batches=split.on(device), on="mask"))
    compare = distill_step(ours, theirs, goal)
    before = measure(compare, split.on(device))
    said = minilm(student, teacher, split.stream, cfg, run.stage_dir, run.accelerator)
    after = measure(compare, split.on(device))
    note = "KL(teacher || student) in nats per query and head."
    table = before_and_after(f"Relations of student and teacher on {split.rows}", before, after, note)
    return run.finish(student, tokenizer, {**said, split.name: after, "before": before}, [table])


def _distil(
    name: str,
    student: nn.Module,
    teacher: nn.Module,
    stream: Iterable[Batch],
    cfg: Config,
    out: Path | None,
    engine: Any,
) -> dict[str, float]:
    """One stage: ``student`` learns the relations of ``teacher``, whose layers above the compared one are not run."""
    layer = cfg.teacher_layer or shape(teacher)[0]
    below = teacher if layer == shape(teacher)[0] else keep_layers(teacher, range(layer))
    stage = Stage(
        name,
        distill_step(*sources(student, below, cfg)),
        train={"student": student},
        stream=stream,
        steps=cfg.steps,
        optim=Optim(cfg.lr, "linear", cfg.warmup, weight_decay=cfg.weight_decay),
        accumulate=cfg.accumulate,
        frozen={"teacher": below},
        seed=cfg.seed,
        save_every=cfg.save_every,
    )
    return fit(stage, out, engine)
