"""DistiLLM: skewed KL divergences, and adaptive off-policy text by the student.

Paper:      Ko et al., ICML 2024, arXiv 2402.03898; released code jongwooko/distillm at d47e77f.
Says:       KL to a mixture that holds a little of the other side has calmer gradients than KL itself. And text by the
            student is dear and, early on, poor: write rarely, keep what was written, train on it again, and let its
            probability (phi) rise only when the validation loss does.
Parts:      data.rollout (Rollout, Adaptive) | data.writer | objectives (soft with a skewed divergence, hard)
Needs:      causal models or encoder-decoders that share a tokenizer. Signals: logits. Batch: ids, mask, targets,
            answer.
Departures: skewed forward KL is the divergence, not its cross-entropy (equal gradients). Validation comes every tenth
            of the run instead of every epoch. The released code's loss on a pre-training corpus is --text. Each process
            keeps its own buffer, as there.
Checked:    released code: values and gradients of both skewed divergences (golden), the schedule of phi by hand.
Claim:      none of its own; the replay of claims/semantic_revision.py follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from limbeck.core.batch import Batch
from limbeck.core.check import one_of, require
from limbeck.core.fit import fit
from limbeck.core.stage import Objective, Optim, Stage, distill_step
from limbeck.crossing import side_by_side
from limbeck.data.compose import Beside
from limbeck.data.held import hold_out
from limbeck.data.policies import Adaptive
from limbeck.data.read import read_text
from limbeck.data.rollout import Rollout
from limbeck.data.stream import lm_batches
from limbeck.data.writer import Sampling
from limbeck.losses.divergence import skew_forward_kl, skew_reverse_kl
from limbeck.methods.language_models.on_policy import (
    AlsoText,
    Job,
    fine_tuned,
    nll_on,
    run_on_policy,
    shares,
    stage_settings,
    writer,
)
from limbeck.models.placement import Held
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import weighted
from limbeck.run import Run
from limbeck.teachers import frozen

DIVERGENCES = {"skew_reverse_kl": skew_reverse_kl, "skew_forward_kl": skew_forward_kl}


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck distillm``."""

    out: Path = Path("runs/distillm")
    """Folder that the run writes."""
    teacher: str = "limbeck:atlas/weights/lm"
    """Folder or Hub id of a language model; by default the one that ships with limbeck."""
    teacher_dtype: Held = "float32"
    """How the teacher is held; auto: as it was saved; int8 and nf4 quantise it while loading (bitsandbytes)."""
    student: str = "every-other"
    """Folder or Hub id; 6x384 or half: the teacher's architecture anew; every-other: a copy of half of its layers."""
    data: str | None = None
    """jsonl with prompt and completion, or running text, cut into prompts and completions; by default the atlas."""
    text: str | None = None
    """Running text for an ordinary language-modelling loss beside; released code: OpenWebText for GPT-2. None: none."""
    divergence: Literal["skew_reverse_kl", "skew_forward_kl"] = "skew_reverse_kl"
    """Which of the paper's divergences; released scripts: adaptive-srkl."""
    alpha: float = 0.1
    """Skew: the share of the other side in the mixture; paper."""
    start: float = 0.0
    """Probability (phi) of text by the student at the start; released code."""
    rise: float = 0.1
    """By how much phi rises when validation has got worse; released code."""
    slack: float = 0.1
    """How much worse, in nats, validation may get before phi rises (epsilon); released code."""
    replay: Literal["decreasing", "constant", "increasing"] = "decreasing"
    """How the newly written part of phi moves with the fraction of steps done; released code."""
    capacity: int = 1000
    """Rows of the student's text that are kept; released code."""
    validate_every: int | None = None
    """Steps between validations; released code: an epoch. None: a tenth of the run."""
    temperature: float = 1.0
    """Temperature of the student's text; released code."""
    new_tokens: int = 32
    """Tokens that the student writes at most; released code: 256 less the prompt."""
    hard: float = 0.0
    """Weight of the ordinary loss on the data's own completions; released scripts: 0."""
    sft_steps: int = 100
    """Steps of ordinary fine-tuning before; the paper starts from a fine-tuned student. 0: yours already is."""
    steps: int = 200
    """Optimizer steps; a choice that suits the atlas."""
    batch: int = 8
    """Rows per batch; released code."""
    length: int = 64
    """Tokens per row, prompt and completion; released code: 512."""
    lr: float = 5e-4
    """Peak learning rate, cosine; released script for GPT-2 base."""


def distillm(
    student: nn.Module,
    teacher: nn.Module,
    stream: Iterable[Batch],
    validation: Sequence[Batch],
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
    tokenizer: Any = None,
    ends: Sequence[int] | None = None,
    text: Iterable[Batch] | None = None,
) -> dict[str, float]:
    """Train ``student`` in place; ``validation`` are batches that move phi, ``text`` an optional corpus beside.

    ``ends`` are the ids that end a text, by default what student and ``tokenizer`` say, which also lets padded output
    layers be cut to one width. ``out`` and ``engine`` go to ``fit``. Returns what it says, the last phi, and the shares
    of data, of written and of replayed text.
    """
    goal, how, phi = parts(cfg, nll_on(student, validation))
    fine_tuned(student, stream, cfg, out, engine)
    write = writer(student, teacher, how, tokenizer, ends)
    mixed = Rollout(stream, write, phi, cfg.seed)
    says, taught = side_by_side(student, teacher, tokenizer)
    step = distill_step(says, taught, goal)
    said = fit(
        Stage(
            "distillm",
            step if text is None else AlsoText(step, says),
            train={"student": student},
            stream=mixed if text is None else Beside(mixed, text),
            steps=cfg.steps,
            optim=Optim(cfg.lr, "cosine"),
            after=[phi],
            frozen=frozen(teacher),
            **stage_settings(cfg),
        ),
        out,
        engine,
    )
    return {**said, "phi": phi.share, **shares(mixed)}


def parts(cfg: Config, validate: Callable[[], float]) -> tuple[Objective, Sampling, Adaptive]:
    """The objective, the sampling and the policy that ``cfg`` asks for; settings that make no sense are refused.

    The objective is the skewed divergence on every completion and, if wanted, the ordinary loss on the data's own.
    """
    one_of(cfg.divergence, DIVERGENCES, "--divergence")
    require(0 <= cfg.alpha < 1, f"--alpha {cfg.alpha}: expected a share from 0 to below 1")
    require(cfg.hard >= 0, f"--hard {cfg.hard}: expected a weight of at least 0")
    goal = soft(partial(DIVERGENCES[cfg.divergence], alpha=cfg.alpha))
    if cfg.hard:
        goal = weighted(soft=(1.0, goal), hard=(cfg.hard, hard(on="reference")))
    period = max(1, cfg.steps // 10) if cfg.validate_every is None else cfg.validate_every
    phi = Adaptive(validate, period, cfg.capacity, cfg.start, cfg.rise, cfg.slack, cfg.replay)
    return goal, Sampling(cfg.new_tokens, cfg.temperature), phi


def main(cfg: Config) -> Path:
    """Distil ``cfg.teacher`` into ``cfg.student``; writes the student and its report to ``cfg.out``."""
    parts(cfg, lambda: 0.0)

    def recipe(job: Job) -> dict[str, float]:
        valid = hold_out(job.split.stream)  # phi must not look at what the report is measured on
        text = cfg.text and lm_batches(read_text(cfg.text), job.tokenizer, cfg.length, cfg.batch, cfg.seed)
        rest = cfg, job.run.stage_dir, job.run.accelerator, job.tokenizer, None, text or None
        return distillm(job.student, job.teacher, valid.stream, valid.batches, *rest)

    return run_on_policy(cfg, "distillm", recipe)
