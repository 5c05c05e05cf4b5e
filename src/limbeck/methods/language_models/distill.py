"""Plain distillation: a student follows its teacher's next-token distribution on a fixed data set.

Paper:      Hinton, Vinyals and Dean 2015, arXiv 1503.02531; for language models as in GKD's supervised baseline
            (Agarwal et al., ICLR 2024, arXiv 2306.13649, table 1) with its divergences and DistiLLM's (2402.03898).
Says:       the teacher's probabilities of all tokens say more than the one token of the data: learn them at every
            answer token, with a small share of the ordinary loss beside them.
Parts:      sources.model | objectives (soft, hard, weighted) | data (chats, turns, packing) | students.adapters |
            crossing (across: one tokenizer, one with padded output layers, or two)
Needs:      causal teacher and student, whatever their tokenizers, or encoder-decoders that share one. Signals: logits.
            Batch: ids, mask, targets, answer; with two tokenizers both cuts (data.crossed).
Departures: the temperature is 1 unless told otherwise, for a language model's distribution is soft by itself; with
            another one the soft loss is multiplied by its square, as the paper says. Means are over the answer tokens
            of the whole optimizer step.
Checked:    divergences against TRL, Liger and DistiLLM; packed rows and adapters against padded rows and whole weights.
Claim:      claims/distill.py, against the same student without a teacher: half a nat better on unseen text after 250
            steps with all of the data, and with a twentieth of it more than that.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from limbeck.analyses.doctor import doctor
from limbeck.core.batch import Batch
from limbeck.core.check import one_of, require
from limbeck.core.fit import fit
from limbeck.core.save import make_folder
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective, Optim, Stage, Step, distill_step
from limbeck.crossing import Across, across, differ
from limbeck.data.held import hold_out
from limbeck.data.packing import padding, repacked
from limbeck.data.read import existing
from limbeck.losses.divergence import (
    forward_kl,
    jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    total_variation,
)
from limbeck.methods.language_models.rows import rows_across
from limbeck.models.placement import Held, held
from limbeck.models.tokenizers import check_same_tokenizer
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import weighted
from limbeck.report.students import Contest
from limbeck.run import Run, begin, save_artefact, seed_all
from limbeck.sources.model import model_source
from limbeck.students.adapters import learning, merged, with_lora
from limbeck.students.load import load_own
from limbeck.teachers import Teacher, frozen, heard, load_teacher, ready

DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "total_variation": total_variation,
}
SFT = "sft"
Tokenizers = tuple[Any, Any]  # the student's and the teacher's


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck distill``."""

    out: Path = Path("runs/distill")
    """Folder that the run writes."""
    teacher: str = "limbeck:atlas/weights/lm"
    """Folder or Hub id of a language model, or a store of `limbeck teach`; by default the LM that comes along."""
    teacher_dtype: Held = "float32"
    """How the teacher is held; auto: as it was saved; int8 and nf4 quantise it while loading (bitsandbytes)."""
    teacher_map: str | None = None
    """auto spreads the teacher over all devices, and memory and disk where they do not suffice (device_map)."""
    student: str = "every-other"
    """Folder or Hub id; 6x384 or half: the teacher's architecture anew; every-other: a copy of half of its layers."""
    data: str | None = None
    """Conversations, prompts with completions, or text (jsonl, json, parquet, folder, Hub id); by default the atlas."""
    chat_template: Path | None = None
    """File with a Jinja chat template in place of the tokenizer's own; the student keeps it."""
    objective: Literal[
        "forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation", "sft"
    ] = "forward_kl"
    """Divergence to the teacher; the paper: forward KL. sft: none, the data alone."""
    hard: float = 0.1
    """Share of the ordinary loss on the data; the paper, section 2: "a considerably lower weight"."""
    temperature: float = 1.0
    """Divides both models' logits; the soft loss is multiplied by its square, as in the paper. 1: see Departures."""
    compare: Literal["none", "sft"] = "none"
    """sft: train the same student on the same batches without the teacher too, and report both."""
    lora: int = 0
    """Rank of low-rank adapters that learn in place of the student's weights (PEFT); 0: the weights themselves."""
    pack: bool = False
    """Put several conversations into one row, kept apart: the same loss without the padding."""
    checkpointing: bool = False
    """Compute the student's activations again in the backward pass: less memory, about a third more time."""
    steps: int = 200
    """Optimizer steps. 200 suit the atlas; three passes over the data are a usual choice elsewhere."""
    batch: int = 8
    """Rows per batch; a choice."""
    length: int = 128
    """Tokens per row; a choice for the atlas, 1024 and more for conversations."""
    lr: float = 1e-4
    """Peak learning rate, cosine; a choice for the atlas. Whole models of billions of weights: 1e-5; adapters: 2e-4."""
    warmup: float = 0.03
    """Share of the steps, or number of them, that warm up; a choice."""


def objective(cfg: Config, pair: Across | None = None) -> Objective:
    """(1 - hard) * soft + hard * hard, or the hard loss alone for ``sft``; ``pair``: for tokenizers that may differ."""
    if cfg.objective == SFT:
        return hard()
    compare = soft if pair is None else pair.soft
    near = compare(DIVERGENCES[cfg.objective], cfg.temperature, rescale=cfg.temperature != 1)
    return weighted(soft=(1 - cfg.hard, near), hard=(cfg.hard, hard())) if cfg.hard else near


def step_of(student: nn.Module, teacher: Teacher, cfg: Config, tokenizers: Tokenizers | None = None) -> Step:
    """What a batch says; for ``sft`` the teacher is not asked."""
    ours, theirs = model_source(student), heard(teacher)
    if cfg.objective == SFT:
        return distill_step(ours, _silent, objective(cfg))
    if tokenizers is None:
        return distill_step(ours, theirs, objective(cfg))
    pair = across(ours, theirs, *tokenizers)
    return distill_step(pair.student, pair.teacher, objective(cfg, pair))


def distill(
    student: nn.Module,
    teacher: Teacher,
    stream: Iterable[Batch],
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
    tokenizers: Tokenizers | None = None,
) -> dict[str, float]:
    """Train ``student`` (or its adapters) in place on ``stream``; ``out`` and ``engine`` go to ``fit``.

    ``tokenizers`` are the student's and the teacher's, for models that may read differently or whose output layers are
    padded differently; ``stream`` is then one of ``crossing.across``. Returns what ``fit`` says. A teacher that is
    quantised or spread over devices stays where it is.
    """
    check(cfg)
    student.train()  # also what stands around adapters
    stage = Stage(
        cfg.objective,
        step_of(student, teacher, cfg, tokenizers),
        train={"student": learning(student)},
        stream=stream,
        steps=cfg.steps,
        optim=Optim(cfg.lr, "cosine", cfg.warmup),
        accumulate=cfg.accumulate,
        frozen=frozen(teacher),
        seed=cfg.seed,
        save_every=cfg.save_every,
    )
    said = fit(stage, out, engine)
    student.eval()
    return said


def check(cfg: Config) -> None:
    """Refuse settings that make no sense, before anything is loaded."""
    one_of(cfg.objective, (*DIVERGENCES, SFT), "--objective")
    require(0 <= cfg.hard <= 1, f"--hard {cfg.hard}: expected a share from 0 to 1")
    require(cfg.temperature > 0, f"--temperature {cfg.temperature}: expected a number above 0")
    require(cfg.lora >= 0, f"--lora {cfg.lora}: expected a rank of at least 1, or 0 for none")
    alone = cfg.compare == SFT and cfg.objective == SFT
    require(not alone, "--compare sft: the run itself is --objective sft; choose a divergence for it")


def main(cfg: Config) -> Path:
    """Distil ``cfg.teacher`` into ``cfg.student`` on ``cfg.data``; writes the student and its report to ``cfg.out``."""
    check(cfg)
    seed_all(cfg.seed)
    teacher, theirs = load_teacher(cfg.teacher, "language", **held(cfg.teacher_dtype, cfg.teacher_map))
    student, tokenizer = student_of(cfg, teacher, theirs)
    if cfg.chat_template is not None:
        tokenizer.chat_template = existing(cfg.chat_template).read_text(encoding="utf-8")
    pair = across(model_source(student), heard(teacher), tokenizer, theirs)
    require(not (cfg.pack and pair.kind == "different"), "--pack: needs one tokenizer for teacher and student")
    split = hold_out(rows_across(cfg, pair, student.config), share=0.1, most=32)
    stream = repacked(split.stream, cfg.length) if cfg.pack else split.stream
    run = begin(cfg, "distill")
    device, alone = run.accelerator.device, deepcopy(student) if cfg.compare == SFT else None
    teacher, both = ready(teacher, device), (tokenizer, theirs)
    student.eval().to(device)
    held_out = split.on(device)
    run.heed(doctor(pair.student, pair.teacher, *both, held_out))
    contest = Contest(teacher, held_out, split.name, pair.near(held_out))
    contest.enter("before", student, price=False)
    engine = (run.stage_dir, run.accelerator, both)
    metrics: dict[str, Any] = distill(student, teacher, copy(stream), cfg, *engine)
    if cfg.lora and run.accelerator.is_main_process:
        save_artefact(student, make_folder(run.out / "adapter"))
    student = contest.enter("distilled", merged(student))
    if alone is not None:
        student.cpu()  # one student at a time is enough for a device
        plain = replace(cfg, objective="sft", compare="none")
        metrics[SFT] = distill(alone.to(device), teacher, copy(stream), plain, *engine)
        contest.enter(SFT, merged(alone))
    if cfg.pack:
        metrics["padding"] = {"padded": padding(split.stream), "packed": padding(stream)}
    contest.print()
    return run.finish(student, tokenizer, metrics | contest.metrics(), contest.sections())


def student_of(cfg: Config, teacher: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The student that ``cfg`` names, with adapters and checkpointing as it says, and its tokenizer."""
    student, own = load_own(cfg.student, teacher, tokenizer, "language")
    require(
        student.config.is_encoder_decoder == teacher.config.is_encoder_decoder,
        f"--student {cfg.student}: one of teacher and student is an encoder-decoder and the other is not",
    )
    if student.config.is_encoder_decoder:
        check_same_tokenizer(own, tokenizer)
    if cfg.checkpointing:
        _recompute(student)
    own = own if differ(own, tokenizer) else tokenizer  # one tokenizer: the teacher's chat template
    return with_lora(student, cfg.lora) if cfg.lora else student, own


def _recompute(student: Any) -> None:
    """Keep no activations for the backward pass."""
    require(
        student.supports_gradient_checkpointing,
        f"--checkpointing: {type(student).__name__} does not support it; leave the flag out",
    )
    enable = getattr(student, "activation_checkpointing_enable", None) or student.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _silent(batch: Batch) -> Signals:
    """A teacher that says nothing."""
    return Signals()
