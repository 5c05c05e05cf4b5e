"""Multi-granularity semantic revision: correct the student's text, clip the divergence, match neighbours.

Paper:      Liu et al. 2024, arXiv 2407.10068 (no released code; the sub-network and the spans are described in
            outline).
Says:       distillation on the student's own text is improved at three levels. Sequence (SCRG): the worst token of a
            text becomes the teacher's, and the student writes on from there. Token (DAC-KL): the KL is taken on the
            dense part of the teacher's distribution, between two levels that a small network learns. Span: products of
            neighbouring tokens' distributions, inside one phrase, are made alike. The three losses are added.
Parts:      data.revise (Corrected) | data.rollout | data.spans | losses.clipped | losses.correlation | objectives
            (hard)
Needs:      causal models or encoder-decoders that share a tokenizer. Signals: logits. Batch: ids, mask, targets,
            answer.
Departures: choices where the paper is silent: the network sees the 64 largest probabilities of the teacher and the
            student's at the same classes; classes are kept softly, on the scale of log-probabilities; at least half of
            the teacher's mass is kept, because nothing else keeps a level that minimises the loss from keeping little;
            texts that need no correction stay; the ordinary loss counts the data's completions only; phrases are runs
            of four words between punctuation, unless a chunker is given.
Checked:    correction, levels, masses and pairs against brute force in float64; DAC with levels 0 and 1 is forward KL.
Claim:      claims/semantic_revision.py, SCRG against plain on-policy text. Corrected texts are likelier to the teacher
            by 0.17 to 0.22 nat a token, but a student that learned from them for 120 steps writes no likelier ones;
            the whole method ends behind plain on-policy text, and that behind the data's text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.fit import fit
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective, Optim, Stage, distill_step
from limbeck.core.terms import Clock, Term, Terms, per
from limbeck.crossing import side_by_side
from limbeck.data.compose import Mapped
from limbeck.data.policies import Share
from limbeck.data.revise import Corrected
from limbeck.data.rollout import Rollout
from limbeck.data.spans import Chunker, Neighbours, phrases
from limbeck.data.writer import Sampling
from limbeck.losses.clipped import clipped_kl
from limbeck.losses.correlation import pair_correlation
from limbeck.losses.divergence import forward_kl
from limbeck.methods.language_models.on_policy import fine_tuned, run_on_policy, shares, stage_settings, writer
from limbeck.models.placement import Held
from limbeck.objectives.named import unit
from limbeck.objectives.tokens import Comparison, check_teacher, compare, hard
from limbeck.run import Run
from limbeck.teachers import frozen

CHUNK = 256  # positions whose tokens x vocabulary are held at once


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck semantic_revision``."""

    out: Path = Path("runs/semantic_revision")
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
    """Probability that a batch is written by the student; a choice (GKD's default in TRL)."""
    corrections: int = 1
    """How often a text is corrected (SCRG); the paper. 0: plain on-policy text."""
    clip: bool = True
    """Whether the KL is clipped to learned levels (DAC-KL); without, it is forward KL."""
    dac: float = 1.0
    """Weight of that loss; paper."""
    span: float = 1.0
    """Weight of the loss on neighbouring tokens; paper. 0 leaves it out."""
    hard: float = 1.0
    """Weight of the ordinary loss on the data's own completions; paper."""
    least: float = 0.5
    """Share of the teacher's mass that is kept whatever the levels say; a choice."""
    temperature: float = 1.0
    """Temperature of the student's text, also after a correction; a choice."""
    new_tokens: int = 32
    """Tokens that the student writes at most; a choice."""
    sft_steps: int = 100
    """Steps of ordinary fine-tuning before; the paper starts from a fine-tuned student. 0: yours already is."""
    steps: int = 120
    """Optimizer steps; a choice that suits the atlas."""
    batch: int = 8
    """Rows per batch; a choice."""
    length: int = 64
    """Tokens per row, prompt and completion; a choice that suits the atlas."""
    lr: float = 3e-4
    """Peak learning rate, linear decay; a choice."""


class Levels(nn.Module):
    """The paper's sub-network: from the largest probabilities of both sides to two quantile levels per position.

    ``forward(student, teacher)``: logits n v of both -> (low, high), each n, with 0 < low < high < 1. It starts near
    levels 0 and 1, that is near plain KL; no gradient goes back into the models.
    """

    def __init__(self, vocabulary: int, top: int = 64, width: int = 64) -> None:
        super().__init__()
        self.top = min(top, vocabulary)
        self.net = nn.Sequential(nn.Linear(2 * self.top, width), nn.ReLU(), nn.Linear(width, 2))
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.01)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([-4.0, 4.0]))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of n positions."""
        p, q = (logits.detach().float().softmax(-1) for logits in (teacher, student))
        largest, classes = p.topk(self.top, dim=-1)
        first, second = self.net(torch.cat([largest, q.gather(-1, classes)], -1)).float().sigmoid().unbind(-1)
        return first, first + (1 - first) * second


def semantic(levels: Levels | None, cfg: Config) -> Objective:
    """The sum of the three losses, ``dac``, ``span`` and ``hard``; with levels also the kept mass, of weight 0."""

    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        said = Terms()

        def dac(where: Tensor) -> tuple[Tensor, Tensor]:
            assert levels is not None
            ours, theirs = student.logits_at(where), teacher.logits_at(where)
            check_teacher(ours, theirs)
            low, high = levels(ours, theirs)
            return clipped_kl(ours, theirs, low, high, batch["targets"][where], cfg.least)

        def span(where: Tensor) -> tuple[Tensor]:
            sides = ((side.logits_at(where), side.logits_at(where.roll(1, 1))) for side in (student, teacher))
            return (pair_correlation(*sides),)

        if levels is None:
            (values,) = compare([Comparison("dac", divergence=forward_kl)], student, teacher, batch)
            said |= per("answer", values, "dac", cfg.dac)
        else:
            loss, mass = chunked(dac, unit(batch, "answer"))
            said["dac"], said["kept_mass"] = Term(loss, "answer", cfg.dac), Term(mass, "answer", 0.0)
        if cfg.span:
            (apart,) = chunked(span, unit(batch, "pairs"))
            said["span"] = Term(apart, "pairs", cfg.span)
        if cfg.hard:
            (term,) = hard(on="reference")(student, teacher, batch, clock).values()
            said["hard"] = term._replace(weight=cfg.hard)
        return said

    return objective


def chunked(values: Callable[[Tensor], tuple[Tensor, ...]], where: Tensor, size: int = CHUNK) -> list[Tensor]:
    """The sums of what ``values`` returns for the true entries of ``where`` b t, ``size`` positions at a time.

    What a chunk holds is given up after the forward pass and computed again in the backward pass.
    """
    sums: list[Tensor] = []
    for part in where.nonzero().split(size):
        mask = torch.zeros_like(where)
        mask[part[:, 0], part[:, 1]] = True
        found = checkpoint(lambda mask: tuple(v.float().sum() for v in values(mask)), mask, use_reentrant=False)
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else list(found)
    return sums


def semantic_revision(
    student: Any,
    teacher: nn.Module,
    stream: Iterable[Batch],
    tokenizer: Any,
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
    ends: Sequence[int] | None = None,
    chunk: Chunker = phrases,
) -> dict[str, float]:
    """Train ``student`` in place on ``stream``, a share of it written by the student and corrected by the teacher.

    ``tokenizer`` and ``chunk`` (text -> spans of characters) say which tokens are neighbours; ``ends`` are the ids that
    end a text. ``out`` and ``engine`` go to ``fit``; returns what it says and the shares of data and written text.
    """
    how = check(cfg)
    says, taught = side_by_side(student, teacher, tokenizer)
    write = writer(student, teacher, how, tokenizer, ends)
    revise = Corrected(says, taught, write, cfg.corrections) if cfg.corrections else None
    levels = Levels(student.config.vocab_size) if cfg.clip else None
    fine_tuned(student, stream, cfg, out, engine)
    mixed = Rollout(stream, write, Share(cfg.share), cfg.seed, revise)
    said = fit(
        Stage(
            "semantic_revision",
            distill_step(says, taught, semantic(levels, cfg)),
            train={"student": student} | ({} if levels is None else {"levels": levels}),
            stream=Mapped(mixed, Neighbours(tokenizer, chunk)) if cfg.span else mixed,
            steps=cfg.steps,
            optim=Optim(cfg.lr),
            frozen=frozen(teacher),
            **stage_settings(cfg),
        ),
        out,
        engine,
    )
    return {**said, **shares(mixed)}


def check(cfg: Config) -> Sampling:
    """The sampling that ``cfg`` asks for; settings that make no sense are refused."""
    require(cfg.corrections >= 0, f"--corrections {cfg.corrections}: expected a number of at least 0")
    require(0 <= cfg.least < 1, f"--least {cfg.least}: expected a share from 0 to below 1")
    require(0 <= cfg.share <= 1, f"--share {cfg.share}: expected a share from 0 to 1")
    weights = cfg.dac, cfg.span, cfg.hard
    require(min(weights) >= 0, f"--dac, --span and --hard: expected weights of at least 0, but got {weights}")
    return Sampling(cfg.new_tokens, cfg.temperature)


def main(cfg: Config) -> Path:
    """Distil ``cfg.teacher`` into ``cfg.student``; writes the student and its report to ``cfg.out``."""
    check(cfg)
    return run_on_policy(
        cfg,
        "semantic_revision",
        lambda job: semantic_revision(
            job.student,
            job.teacher,
            job.split.stream,
            job.tokenizer,
            cfg,
            job.run.stage_dir,
            job.run.accelerator,
        ),
    )
