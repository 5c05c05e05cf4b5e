"""TAID: temporally adaptive interpolated distillation.

Paper:      Shing et al., ICLR 2025, arXiv 2501.16937; released code SakanaAI/TAID at a062892.
Says:       the target wanders, in logit space, from the student's own distribution to the teacher's: at least along a
            straight line, and ahead of it while the loss is falling. That bridges the gap between unequal models.
Parts:      sources.model | objectives (interpolated, soft, hard) | after (objectives.pace)
Needs:      causal student and teacher that share a tokenizer. Signals: logits. Batch: ids, mask, targets, answer.
Departures: t moves once per optimizer step, from the loss averaged over all micro-batches and processes; the released
            code moves it per micro-batch and lets processes drift apart. The paper's alpha of 5e-4 lets the adaptive
            term act only in runs of about 8000 steps or more; by default shorter runs scale it to 4 / steps. A token
            that either model forbids (a logit of minus infinity) is forbidden by the target.
Checked:    released code: target, loss and gradient at five t, five controller paths, a whole trajectory.
Claim:      claims/taid.py, against forward and reverse KL and the plain linear curriculum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from limbeck.analyses.doctor import doctor
from limbeck.analyses.measure import measure
from limbeck.core.batch import Batch
from limbeck.core.check import one_of, require
from limbeck.core.fit import fit
from limbeck.core.stage import Objective, Optim, Stage, distill_step
from limbeck.crossing import side_by_side
from limbeck.data.held import hold_out
from limbeck.losses.divergence import forward_kl, jsd, reverse_kl, total_variation
from limbeck.methods.language_models.rows import rows
from limbeck.models.load import Dtype
from limbeck.objectives.pace import NAME, AdaptiveT, interpolated
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import weighted
from limbeck.report.sections import before_and_after
from limbeck.run import Run, begin, seed_all
from limbeck.students.load import load_student
from limbeck.teachers import Teacher, frozen, load_teacher, ready

DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd, "total_variation": total_variation}
GOALS = ("taid", "linear", *DIVERGENCES)


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck taid``."""

    out: Path = Path("runs/taid")
    """Folder that the run writes."""
    teacher: str = "limbeck:atlas/weights/lm"
    """Folder or Hub id of a causal LM, or a store of `limbeck teach`; by default the LM that ships with limbeck."""
    teacher_dtype: Dtype = "float32"
    """Number format in which the teacher is held; losses are computed in float32 whatever it is."""
    student: str = "every-other"
    """Folder or Hub id; 6x384 or half: the teacher's architecture anew; every-other: a copy of half of its layers."""
    data: str | None = None
    """jsonl with prompt and completion, or text (jsonl, txt, parquet, folder, Hub id); by default the atlas."""
    objective: Literal["taid", "linear", "forward_kl", "reverse_kl", "jsd", "total_variation"] = "taid"
    """What is minimised: TAID, its linear schedule alone, or a fixed divergence to the teacher as a baseline."""
    steps: int = 200
    """Optimizer steps; the paper: 5 epochs of UltraChat-200k. 200 suit the atlas."""
    batch: int = 8
    """Rows per batch; released code: 8 per GPU, 8 GPUs."""
    length: int = 128
    """Tokens per row; released code: 2048."""
    lr: float = 1e-4
    """Peak learning rate, cosine without warm-up; released code."""
    t_start: float = 0.4
    """Where t begins; released code (0.2 in its llama-2 and stablelm scripts)."""
    t_end: float = 1.0
    """Where t ends; released code."""
    alpha: float | None = None
    """Size of an adaptive step; released code: 5e-4. None: that, but at least 4 / steps (see Departures)."""
    beta: float = 0.99
    """Memory of the loss's relative change; released code."""
    hard: float = 0.0
    """Share of the ordinary language-modelling loss; released code: 0."""


def taid(
    student: nn.Module,
    teacher: Teacher,
    stream: Iterable[Batch],
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
    tokenizer: Any = None,
) -> dict[str, float]:
    """Train ``student`` in place towards ``teacher`` (a model or a source) on ``stream``.

    ``out`` and ``engine`` go to ``fit``.

    With their ``tokenizer``, output layers that are padded differently are cut to one width. Returns what ``fit`` says
    and, where t moves, its last value and ``adaptive_share``.
    """
    pace = paced_by(cfg)
    paced = cfg.objective not in DIVERGENCES
    goal: Objective = interpolated(pace) if paced else soft(DIVERGENCES[cfg.objective])
    if cfg.hard:
        goal = weighted(**{NAME: (1 - cfg.hard, goal), "hard": (cfg.hard, hard())})
    said = fit(
        Stage(
            cfg.objective,
            distill_step(*side_by_side(student, teacher, tokenizer), goal),
            train={"student": student},
            stream=stream,
            steps=cfg.steps,
            optim=Optim(cfg.lr, "cosine"),
            accumulate=cfg.accumulate,
            after=[pace] if paced else [],
            state={"pace": pace} if paced else {},
            frozen=frozen(teacher),
            seed=cfg.seed,
            save_every=cfg.save_every,
        ),
        out,
        engine,
    )
    return {**said, "t": pace.t, "adaptive_share": pace.share} if paced else said


def paced_by(cfg: Config) -> AdaptiveT:
    """The pace that ``cfg`` asks for; settings that make no sense are refused."""
    one_of(cfg.objective, GOALS, "--objective")
    require(0 <= cfg.hard <= 1, f"--hard {cfg.hard}: expected a share from 0 to 1")
    alpha = max(5e-4, 4 / max(1, cfg.steps)) if cfg.alpha is None else cfg.alpha
    return AdaptiveT(cfg.t_start, cfg.t_end, alpha, cfg.beta, adaptive=cfg.objective == "taid")


def main(cfg: Config) -> Path:
    """Distil ``cfg.teacher`` into ``cfg.student`` on ``cfg.data``; writes the student and its report to ``cfg.out``."""
    seed_all(cfg.seed)
    paced_by(cfg)
    teacher, tokenizer = load_teacher(cfg.teacher, "causal", dtype=cfg.teacher_dtype)
    student = load_student(cfg.student, teacher, tokenizer, "causal")
    split = hold_out(rows(cfg, tokenizer, student.config))
    run = begin(cfg, "taid")
    device = run.accelerator.device
    teacher = ready(teacher, device)
    both = side_by_side(student.eval().to(device), teacher, tokenizer)
    run.heed(doctor(*both, tokenizer, batches=split.on(device)))
    compare = distill_step(*both, agreement())
    before = measure(compare, split.on(device))
    said = taid(student, teacher, split.stream, cfg, run.stage_dir, run.accelerator, tokenizer)
    after = measure(compare, split.on(device))
    table = before_and_after(f"Student and teacher on {split.rows}", before, after, "Nats per token.")
    return run.finish(student, tokenizer, {**said, split.name: after, "before": before}, [table])


def agreement() -> Objective:
    """What is measured, never trained: both KLs to the teacher, and the student's negative log-likelihood."""
    return weighted(forward_kl=(1, soft(forward_kl)), reverse_kl=(1, soft(reverse_kl)), student_nll=(1, hard()))
