"""SeqKD: sequence-level knowledge distillation.

Paper:      Kim and Rush, Sequence-Level Knowledge Distillation, EMNLP 2016, arXiv 1606.07947, sections 3.2 and 3.3.
Says:       the teacher writes, and the student learns its text with plain cross-entropy: the teacher's distribution
            over whole sequences is replaced by its mode (beam search) or by samples. Any teacher that can write will
            do, a model here or one behind an API.
Parts:      writers (data.written, data.model_writer, sources.served) | objectives (hard) | core.fit
Needs:      prompts: rows with prompt, conversations, or running text that is cut into prompts. Teacher and student,
            causal or encoder-decoder, may have different tokenizers. Batch: ids, mask, targets, answer.
Departures: no word-level distillation beside it. --decode sample, text drawn from the teacher, is what the on-policy
            papers call SeqKD and what an API can give. A text cut at the limit of tokens is taught without an end.
Checked:    written text against transformers' own generate; sentence BLEU by hand; `hard` has tests of its own.
Claim:      claims/seqkd.py, against the same student on the original data with equal budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.analyses.doctor import doctor
from limbeck.analyses.measure import measure
from limbeck.atlas.tasks import partition
from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.fit import fit
from limbeck.core.save import read_json
from limbeck.core.signals import Signals
from limbeck.core.stage import Optim, Stage, distill_step
from limbeck.core.track import say
from limbeck.data.asked import read_prompts
from limbeck.data.held import Split, hold_out
from limbeck.data.pairs import causal_batches, seq2seq_batches
from limbeck.data.stream import Batches
from limbeck.data.tasks import Episode, Episodes, TaskPool
from limbeck.data.templates import LAYOUTS
from limbeck.data.written import SETTINGS, Prompt, Write
from limbeck.evaluation.metrics import sentence_bleu
from limbeck.evaluation.model import start_token
from limbeck.models.load import Dtype, load_model
from limbeck.objectives.tokens import hard
from limbeck.report.sections import KeyValues, Section, before_and_after
from limbeck.run import Run, Started, begin, seed_all
from limbeck.sources.model import model_source
from limbeck.sources.wire import is_url
from limbeck.students.layers import parse_size
from limbeck.students.load import EVERY_OTHER, HALF, load_student
from limbeck.writers import Writing, usual_filters, writer, written

SHOTS = 8  # examples in a prompt of the atlas


@dataclass(frozen=True)
class Config(Writing, Run):
    """Settings of ``limbeck seqkd``."""

    out: Path = Path("runs/seqkd")
    """Folder that the run writes."""
    teacher: str = "limbeck:atlas/weights/lm"
    """Folder or Hub id of a language model, or the address of a server (http://...); by default that of the atlas."""
    teacher_dtype: Dtype = "float32"
    """Number format in which a teacher here is held."""
    student: str = "every-other"
    """Folder or Hub id, with a tokenizer of its own; 6x384, half or every-other: made from a teacher here."""
    data: str | None = None
    """Prompts, conversations or text (jsonl, json, txt, parquet, folder, Hub id); by default tasks of the atlas."""
    prompts: int | None = None
    """How many prompts are taken, the first ones; None: all, of the atlas 300."""
    prompt_length: int = 32
    """Tokens at the beginning of running text that are a prompt; a choice."""
    steps: int = 200
    """Optimizer steps; a choice, 200 suit the atlas."""
    batch: int = 8
    """Rows per batch; a choice."""
    length: int = 256
    """Tokens per row; longer texts are left out, longer prompts lose their beginning."""
    lr: float = 1e-4
    """Peak learning rate, cosine without warm-up; a choice, as in taid."""


def seqkd(
    student: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], write: Write, cfg: Config, run: Started | None = None
) -> dict[str, Any]:
    """Let the teacher ``write`` for ``prompts`` into ``cfg.out``/written, and train ``student`` in place on that.

    ``tokenizer`` is the student's, ``run`` the run that this is part of, if it is. Returns what ``fit`` says, the mean
    negative log-likelihood of held-out text before and after, and what was written (``text``). Stopped anywhere, the
    same call goes on.
    """
    out, engine = Path(cfg.out), None if run is None else run.accelerator
    filters = usual_filters(cfg, tokenizer, cfg.length - 2)
    path = written(prompts, write, cfg, filters, sentence_bleu, out / "written", engine)
    split = hold_out(batches(path, student, tokenizer, cfg))
    if run is not None:
        run.heed(
            doctor(model_source(student.to(run.accelerator.device)), silent, tokenizer, batches=_on(split, engine))
        )
    before = likelihood(student, split, engine)
    said = learn(student, split.stream, cfg, out / "stages", engine)
    after = likelihood(student, split, engine)
    return {**said, split.name: after, "before": before, "text": read_json(path.parent / SETTINGS)}


def batches(path: Path, student: Any, tokenizer: Any, cfg: Config) -> Batches:
    """What was written, as batches for the kind of model that ``student`` is."""
    if student.config.is_encoder_decoder:
        return seq2seq_batches(path, tokenizer, cfg.length, cfg.batch, start_token(student), cfg.seed)
    return causal_batches(path, tokenizer, cfg.length, cfg.batch, cfg.seed)


def learn(
    student: nn.Module, stream: Iterable[Batch], cfg: Config, out: Path | None = None, engine: Any = None
) -> dict[str, float]:
    """Train ``student`` in place on text, whoever wrote it: plain cross-entropy of the supervised tokens."""
    stage = Stage(
        "seqkd",
        distill_step(model_source(student), silent, hard()),
        train={"student": student},
        stream=stream,
        steps=cfg.steps,
        optim=Optim(cfg.lr, "cosine"),
        accumulate=cfg.accumulate,
        seed=cfg.seed,
        save_every=cfg.save_every,
    )
    return fit(stage, out, engine)


def silent(batch: Batch) -> Signals:
    """A teacher that says nothing while the student learns: it has written everything before."""
    return Signals()


def likelihood(student: nn.Module, split: Split, engine: Any = None) -> dict[str, float]:
    """``nll``: nats per supervised token of the rows that are not trained on."""
    rows = _on(split, engine)
    student.eval().to(rows[0]["ids"].device)
    return {"nll": measure(distill_step(model_source(student), silent, hard()), rows)["hard"]}


def _on(split: Split, engine: Any) -> list[Batch]:
    return split.batches if engine is None else split.on(engine.device)


def main(cfg: Config) -> Path:
    """Distil text by ``cfg.teacher`` into ``cfg.student``; writes text, student and report to ``cfg.out``."""
    cfg = settled(cfg)
    seed_all(cfg.seed)
    student, tokenizer, teacher = models(cfg)
    write, server = writer(cfg, *teacher)
    prompts = prompts_of(cfg, tokenizer)
    run = begin(cfg, "seqkd")
    for model in teacher[:1]:
        model.to(run.accelerator.device)
    metrics = seqkd(student, tokenizer, prompts, write, cfg, run)
    if server is not None:
        metrics["served"] = server.bill()
        say(server.receipt())
        server.close()
    return run.finish(student, tokenizer, metrics, sections(metrics))


def models(cfg: Config) -> tuple[Any, Any, tuple[Any, ...]]:
    """Student, its tokenizer, and teacher with its tokenizer where the teacher is here (else empty)."""
    made = cfg.student in (EVERY_OTHER, HALF) or parse_size(cfg.student) is not None
    if is_url(cfg.teacher):
        require(
            not made,
            f"--student {cfg.student} is made from its teacher, but {cfg.teacher} is behind an API; name a model",
        )
        return *load_model(cfg.student, "language"), ()
    teacher, tokenizer = load_model(cfg.teacher, "language", cfg.teacher_dtype)
    if made:
        return load_student(cfg.student, teacher, tokenizer, "language"), tokenizer, (teacher, tokenizer)
    return *load_model(cfg.student, "language"), (teacher, tokenizer)


def settled(cfg: Config) -> Config:
    """``cfg`` as the atlas wants it where there is no ``data``: examples are parted by empty lines."""
    require(cfg.length > 2, f"--length {cfg.length}: expected at least 3 tokens: of a prompt, of a text, and its end")
    return cfg if cfg.data or cfg.stop else replace(cfg, stop=(LAYOUTS["metaicl"].between,))


def prompts_of(cfg: Config, tokenizer: Any) -> list[Prompt]:
    """The prompts that ``cfg`` names: the user's data, or tasks of the atlas, shown by ``SHOTS`` examples."""
    if cfg.data is not None:
        return read_prompts(cfg.data, tokenizer, cfg.prompt_length)[: cfg.prompts]
    episodes = Episodes(TaskPool(partition("held_out_task", test_tasks=1).train), SHOTS, cfg.seed)
    return [_shown(episodes[number]) for number in range(cfg.prompts or 300)]


def _shown(episode: Episode) -> Prompt:
    layout = LAYOUTS["metaicl"]
    demos = (f"{demo.input}{layout.answer}{demo.output}{layout.between}" for demo in episode.demos)
    return Prompt("".join(demos) + episode.query.input, layout.answer + episode.query.output)


def sections(metrics: Mapping[str, Any]) -> list[Section]:
    """The report's own parts: the student on the teacher's text, what was written, what it cost."""
    name = "held_out" if "held_out" in metrics else "training_rows"
    title = f"Student on the teacher's text, {name.replace('_', ' ')}"
    parts: list[Section] = [before_and_after(title, metrics["before"], metrics[name], "Nats per token.")]
    parts.append(KeyValues("What the teacher wrote", metrics["text"]))
    return [*parts, KeyValues("The served teacher", metrics["served"])] if "served" in metrics else parts
