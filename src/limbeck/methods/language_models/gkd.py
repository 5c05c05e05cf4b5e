"""GKD: generalised knowledge distillation, on text by the student.

Paper:      Agarwal et al., ICLR 2024, arXiv 2306.13649; defaults from TRL's GKDTrainer at f2cd577.
Says:       a student that learns only from given text meets, when it writes, prefixes that nobody taught it to go on
            from. So a share (lambda) of its batches is what it writes itself, and the teacher says token by token how
            it would have gone on; no gradient flows through the sampling. The divergence is a Jensen-Shannon of free
            weight (beta), from forward to reverse KL.
Parts:      data.rollout (Rollout, Share, Reused) | data.writer | objectives (soft with jsd, hard)
Needs:      causal models or encoder-decoders that share a tokenizer. Signals: logits. Batch: ids, mask, targets,
            answer.
Departures: the share is drawn per batch, as in the paper's algorithm and TRL. The sampling temperature does not enter
            the loss (nor does it in TRL). The reward of the paper's section 4.2 is left out. Text is written in eval
            mode. Texts may be used several times (--reuse); the paper uses each once.
Checked:    TRL's losses and gradients on a grid of beta and temperature (golden); the stream against its definition.
Claim:      none of its own; the plain on-policy baseline of claims/semantic_revision.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.fit import fit
from limbeck.core.stage import Objective, Optim, Stage, distill_step
from limbeck.crossing import side_by_side
from limbeck.data.policies import Share
from limbeck.data.rollout import Reused, Rollout
from limbeck.data.writer import Sampling
from limbeck.losses.divergence import jsd
from limbeck.methods.language_models.on_policy import fine_tuned, run_on_policy, shares, stage_settings, writer
from limbeck.models.placement import Held
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import weighted
from limbeck.run import Run
from limbeck.teachers import frozen

COLLECT = 16  # batches that are written before they are used again, with --reuse


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck gkd``."""

    out: Path = Path("runs/gkd")
    """Folder that the run writes."""
    teacher: str = "limbeck:atlas/weights/lm"
    """Folder or Hub id of a language model; by default the one that ships with limbeck."""
    teacher_dtype: Held = "float32"
    """How the teacher is held; auto: as it was saved; int8 and nf4 quantise it while loading (bitsandbytes)."""
    student: str = "every-other"
    """Folder or Hub id; 6x384 or half: the teacher's architecture anew; every-other: a copy of half of its layers."""
    data: str | None = None
    """jsonl with prompt and completion, or running text, cut into prompts and completions; by default the atlas."""
    share: float = 0.5
    """Probability (lambda) that a batch is written by the student; TRL. 1: on-policy alone; 0: the data alone."""
    beta: float = 0.5
    """Weight of the Jensen-Shannon divergence: 0 forward KL, 1 reverse KL; TRL. The paper tries 0, 0.1, 0.5, 0.9, 1."""
    temperature: float = 1.0
    """Temperature of the student's text, not of the loss; the paper (TRL: 0.9)."""
    new_tokens: int = 32
    """Tokens that the student writes at most, and length of the completions of running text; TRL: 128."""
    reuse: int = 1
    """How often each batch is used; above 1, 16 batches at a time are written and used in turn, which saves time."""
    hard: float = 0.0
    """Weight of the ordinary loss on the data's own completions; the paper: 0."""
    sft_steps: int = 100
    """Steps of ordinary fine-tuning before; the paper starts from a fine-tuned student. 0: yours already is."""
    steps: int = 200
    """Optimizer steps; a choice that suits the atlas."""
    batch: int = 8
    """Rows per batch; the paper: 32 to 128 by task."""
    length: int = 64
    """Tokens per row, prompt and completion; a choice that suits the atlas."""
    lr: float = 3e-4
    """Peak learning rate, linear decay; the paper, for T5."""


def gkd(
    student: nn.Module,
    teacher: nn.Module,
    stream: Iterable[Batch],
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
    tokenizer: Any = None,
    ends: Sequence[int] | None = None,
) -> dict[str, float]:
    """Train ``student`` in place on ``stream``, a share of it written by the student.

    ``ends`` are the ids that end a text, by default what student and ``tokenizer`` say, which also lets padded output
    layers be cut to one width. ``out`` and ``engine`` go to ``fit``. Returns what it says and the shares of data and of
    written text.
    """
    goal, policy, how = parts(cfg)
    fine_tuned(student, stream, cfg, out, engine)
    write = writer(student, teacher, how, tokenizer, ends)
    mixed = Rollout(stream, write, policy, cfg.seed)
    said = fit(
        Stage(
            "gkd",
            distill_step(*side_by_side(student, teacher, tokenizer), goal),
            train={"student": student},
            stream=mixed if cfg.reuse == 1 else Reused(mixed, COLLECT, cfg.reuse, cfg.seed),
            steps=cfg.steps,
            optim=Optim(cfg.lr),
            frozen=frozen(teacher),
            **stage_settings(cfg),
        ),
        out,
        engine,
    )
    return {**said, **shares(mixed)}


def parts(cfg: Config) -> tuple[Objective, Share, Sampling]:
    """The objective, the policy and the sampling that ``cfg`` asks for; settings that make no sense are refused.

    The objective is JSD(beta) on every completion and, if wanted, the ordinary loss on the data's own.
    """
    require(0 <= cfg.beta <= 1, f"--beta {cfg.beta}: expected a weight from 0 to 1")
    require(cfg.hard >= 0, f"--hard {cfg.hard}: expected a weight of at least 0")
    require(cfg.reuse >= 1, f"--reuse {cfg.reuse}: expected a whole number of at least 1")
    goal = soft(partial(jsd, beta=cfg.beta))
    if cfg.hard:
        goal = weighted(soft=(1.0, goal), hard=(cfg.hard, hard(on="reference")))
    return goal, Share(cfg.share), Sampling(cfg.new_tokens, cfg.temperature)


def main(cfg: Config) -> Path:
    """Distil ``cfg.teacher`` into ``cfg.student``; writes the student and its report to ``cfg.out``."""
    parts(cfg)
    return run_on_policy(
        cfg,
        "gkd",
        lambda job: gkd(
            job.student, job.teacher, job.split.stream, cfg, job.run.stage_dir, job.run.accelerator, job.tokenizer
        ),
    )
