"""MiniLLM: reverse KL over whole texts, by policy gradient.

Paper:      Gu et al., ICLR 2024, arXiv 2306.08543; released code microsoft/LMOps (minillm) at 4f2a9de.
Says:       reverse KL between whole texts asks the student to write what the teacher finds likely. Its gradient is
            split in two: of the token at hand, exactly, over the whole vocabulary (single step); of all that follows
            it, by policy gradient, normalised by the remaining length. Texts are drawn from a mixture with the teacher,
            which keeps the student from gaming its score, and an ordinary loss on a corpus keeps it a language model.
Parts:      data.rollout (Rollout, Reused) | data.writer (mixed) | losses.policy_gradient | objectives (here)
Needs:      causal models or encoder-decoders that share a tokenizer. Signals: logits. Batch: ids, mask, answer.
Departures: by default what follows a token is what follows it, R_(t+1), as in the paper; the released code also counts
            the token's own reward, which the single step has counted already (--returns released). Advantages are
            whitened over the real tokens of a batch; the released code counts padding. The single step carries no
            importance weight, as in the released code: given the prefix, the mean of that weight is 1. Text is drawn at
            temperature 1 without cuts, so that its probabilities are the models' own. Whitening makes the released
            code's reward scaling idle, so there is none.
Checked:    released code: returns, whitening, clipped loss, single step (golden); the gradient of the expected reverse
            KL against exact enumeration on a small vocabulary.
Claim:      none of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.atlas import corpora
from limbeck.core.batch import Batch, to_device
from limbeck.core.check import one_of, require
from limbeck.core.fit import fit
from limbeck.core.signals import Signals, Source
from limbeck.core.stage import Objective, Optim, Stage, distill_step
from limbeck.core.terms import Clock, Terms, per
from limbeck.crossing import side_by_side
from limbeck.data.compose import Beside
from limbeck.data.policies import Share
from limbeck.data.read import read_text
from limbeck.data.rollout import Reused, Rollout
from limbeck.data.samples import Sample, batch_of
from limbeck.data.stream import Batches, lm_batches
from limbeck.data.writer import Sampling, Writer, silent
from limbeck.losses.divergence import reverse_kl
from limbeck.losses.policy_gradient import clipped_surrogate, returns_to_go, whitened
from limbeck.methods.language_models.on_policy import (
    DOCUMENTS,
    AlsoText,
    Job,
    fine_tuned,
    run_on_policy,
    stage_settings,
    writer,
)
from limbeck.models.placement import Held
from limbeck.objectives.tokens import Comparison, compare
from limbeck.run import Run
from limbeck.teachers import frozen


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck minillm``."""

    out: Path = Path("runs/minillm")
    """Folder that the run writes."""
    teacher: str = "limbeck:atlas/weights/lm"
    """Folder or Hub id of a language model; by default the one that ships with limbeck."""
    teacher_dtype: Held = "float32"
    """How the teacher is held; auto: as it was saved; int8 and nf4 quantise it while loading (bitsandbytes)."""
    student: str = "every-other"
    """Folder or Hub id; 6x384 or half: the teacher's architecture anew; every-other: a copy of half of its layers."""
    data: str | None = None
    """jsonl with prompt and completion (used to fine-tune first), or running text, cut in two; by default the atlas."""
    text: str | None = None
    """Corpus of the language-modelling loss; paper: OpenWebText. None: the atlas or, with --data, no such loss."""
    text_weight: float = 1.0
    """Weight of that loss; released scripts (lm-data-coef)."""
    mixed: float = 0.2
    """The teacher's share in the distribution that texts are drawn from; paper."""
    gamma: float = 1.0
    """Discount of later rewards; the paper has none (released scripts: 0.95)."""
    clip: float = 0.2
    """Clipping range of the probability ratio; released code."""
    returns: Literal["paper", "released"] = "paper"
    """Whether a token's own reward is left to the single step, or counted twice as in the released code."""
    collect: int = 4
    """Batches that are written before they are used; released scripts: 256 texts in batches of 64."""
    reuse: int = 4
    """How often each is used; released scripts (ppo-epochs)."""
    new_tokens: int = 32
    """Tokens that the student writes at most; released code: 512 less the prompt."""
    sft_steps: int = 100
    """Steps of ordinary fine-tuning before; the paper starts from a fine-tuned student. 0: yours already is."""
    steps: int = 120
    """Optimizer steps; a choice that suits the atlas (released scripts: 5000)."""
    batch: int = 8
    """Rows per batch; released code: 8 per GPU."""
    length: int = 64
    """Tokens per row, prompt and completion; released code: 512."""
    lr: float = 5e-5
    """Learning rate, cosine; a choice (the paper: 5e-6, for models a thousand times the size)."""


class Scored:
    """Notes on every written token: its log-probability then (``old``), importance ``weight`` and ``advantage``.

    The reward of a token is log P - log Q of teacher and student; its advantage is what follows, whitened over the
    batch (the paper's equations 6 to 9). To be used as ``Rollout(revise=...)``.
    """

    def __init__(self, student: Source, teacher: Source, write: Writer, cfg: Config) -> None:
        self.student, self.teacher, self.write, self.cfg = student, teacher, write, cfg

    def __call__(self, rows: list[Sample], seed: int) -> list[Sample]:
        """The rows with their notes."""
        batch = to_device(batch_of(rows), next(self.write.model.parameters()).device)
        with silent(self.write.model):
            ours, theirs = (spoken(source(batch), batch) for source in (self.student, self.teacher))
        where, cfg = batch["answer"], self.cfg
        weight = (ours - mixture(ours, theirs, cfg.mixed)).exp()
        follows = returns_to_go(theirs - ours, where, cfg.gamma, later_only=cfg.returns == "paper")
        notes = {"old": ours, "weight": weight, "advantage": whitened(follows, where)}
        lists = [{name: value[i][where[i]].tolist() for name, value in notes.items()} for i in range(len(rows))]
        return [row.noted(**noted) for row, noted in zip(rows, lists, strict=True)]


def spoken(signals: Signals, batch: Batch) -> Tensor:
    """log-probability b t of every target where ``answer`` is true, 0 elsewhere."""
    (nll,) = compare([Comparison("nll")], signals, signals, batch)
    return torch.zeros(batch["ids"].shape, dtype=nll.dtype, device=nll.device).masked_scatter(batch["answer"], -nll)


def mixture(ours: Tensor, theirs: Tensor, share: float) -> Tensor:
    """log((1 - share) Q + share P) from log-probabilities."""
    if share in (0, 1):
        return theirs if share else ours
    parts = torch.tensor([1 - share, share], device=ours.device).log()
    return torch.logaddexp(ours + parts[0], theirs + parts[1])


def policy_and_single_step(clip: float) -> Objective:
    """The clipped policy gradient (term ``policy``) and the exact reverse KL of each token (``single``)."""

    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        asked = Comparison("nll"), Comparison("single", divergence=reverse_kl)
        nll, single = compare(asked, student, teacher, batch)
        old, advantage, weight = (batch[name][batch["answer"]] for name in ("old", "advantage", "weight"))
        policy = per("answer", clipped_surrogate(-nll, old, advantage, weight, clip), "policy")
        return Terms({**policy, **per("answer", single, "single")})

    return objective


def minillm(
    student: nn.Module,
    teacher: nn.Module,
    stream: Iterable[Batch],
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
    tokenizer: Any = None,
    ends: Sequence[int] | None = None,
    text: Iterable[Batch] | None = None,
) -> dict[str, float]:
    """Train ``student`` in place on its own continuations of the prompts of ``stream``, and on ``text`` beside.

    ``ends`` are the ids that end a text, by default what student and ``tokenizer`` say, which also lets padded output
    layers be cut to one width. ``out`` and ``engine`` go to ``fit``, whose summary is returned.
    """
    how = check(cfg)
    says, taught = side_by_side(student, teacher, tokenizer)
    write = writer(student, teacher, how, tokenizer, ends, (teacher, cfg.mixed) if cfg.mixed else None)
    fine_tuned(student, stream, cfg, out, engine)
    written = Rollout(stream, write, Share(1.0), cfg.seed, revise=Scored(says, taught, write, cfg))
    batches = Reused(written, cfg.collect, cfg.reuse, cfg.seed)
    step = distill_step(says, taught, policy_and_single_step(cfg.clip))
    return fit(
        Stage(
            "minillm",
            step if text is None else AlsoText(step, says, cfg.text_weight),
            train={"student": student},
            stream=batches if text is None else Beside(batches, text),
            steps=cfg.steps,
            optim=Optim(cfg.lr, "cosine"),
            frozen=frozen(teacher),
            **stage_settings(cfg),
        ),
        out,
        engine,
    )


def check(cfg: Config) -> Sampling:
    """The sampling that ``cfg`` asks for; settings that make no sense are refused."""
    one_of(cfg.returns, ("paper", "released"), "--returns")
    require(0 <= cfg.mixed < 1, f"--mixed {cfg.mixed}: expected a share from 0 to below 1")
    require(0 <= cfg.gamma <= 1, f"--gamma {cfg.gamma}: expected a discount from 0 to 1")
    require(cfg.collect >= 1 and cfg.reuse >= 1, "--collect and --reuse: expected whole numbers of at least 1")
    return Sampling(cfg.new_tokens)


def main(cfg: Config) -> Path:
    """Distil ``cfg.teacher`` into ``cfg.student``; writes the student and its report to ``cfg.out``."""
    check(cfg)

    def recipe(job: Job) -> dict[str, float]:
        rest = cfg, job.run.stage_dir, job.run.accelerator, job.tokenizer, None, corpus(cfg, job.tokenizer)
        return minillm(job.student, job.teacher, job.split.stream, *rest)

    return run_on_policy(cfg, "minillm", recipe)


def corpus(cfg: Config, tokenizer: Any) -> Batches | None:
    """The running text that ``cfg`` names."""
    if cfg.text is None and cfg.data is not None:
        return None
    texts = corpora.documents("en", DOCUMENTS, cfg.seed + 1) if cfg.text is None else read_text(cfg.text)
    return lm_batches(texts, tokenizer, cfg.length, cfg.batch, cfg.seed)
