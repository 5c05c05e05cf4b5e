"""MEND: Meta dEmonstratioN Distillation.

Paper:      Li et al., ICLR 2024, arXiv 2403.06914; released code bigheiniu/MEND at 169e60d.
Says:       a small LM reads demonstrations and writes a few vectors; the frozen big LM, reading the vectors, is taught
            to answer as it does when it reads the demonstrations: on running text first, then on tasks.
Parts:      context.distiller | sources.views (full and compressed context of one LM) | objectives (soft, hard)
Needs:      LLM and distiller share a tokenizer. Signals: readout. Batch: ids, mask, targets, answer, demos, context.
Departures: padding never moves the placeholders (released code: by the longest row of the batch). Groups of
            demonstrations keep all their vectors (released code: the last group's). The LLM runs in the precision asked
            for, not in int8. No choice of checkpoint on the target tasks' dev data. Encoder-decoders run.
Checked:    released code: vectors, losses, gradients, option scores; padded and not; with a projection and without.
Claim:      claims/mend.py, against in-context learning, prompt tuning and HyperTuning's loss. It keeps 91 % of what
            demonstrations give in a ninth of the positions; the same distiller after a stage 2 without a teacher
            (HyperTuning's loss) keeps 93 %. Not shown at this scale: a gain over prompt tuning on the demonstrations
            (which is 0.06 better), and 0.05 over HyperTuning's loss with noisy labels (0.04 seen).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from limbeck.analyses.doctor import doctor, joined
from limbeck.atlas.tasks import partitions as atlas_partitions
from limbeck.context.distiller import Distiller, open_distiller
from limbeck.context.evaluate import Result, Split, compare, makers, result_table, split_tasks
from limbeck.context.host import load_llm
from limbeck.context.streams import document_stream, episode_stream
from limbeck.core.batch import Batch, to_device
from limbeck.core.check import require
from limbeck.core.fit import fit
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective, Optim, Stage, Step, distill_step, freeze
from limbeck.data.read import read_text
from limbeck.data.stream import Batches
from limbeck.data.tasks import read_tasks, seeds
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import weighted
from limbeck.report.results import results_table
from limbeck.run import Run, begin, seed_all
from limbeck.sources.views import View, compressed_context, full_context

LLM, DISTILLER = "limbeck:atlas/weights/lm", "limbeck:atlas/weights/distiller"
PAPER: dict[str, Any] = {"steps": 30_000, "batch": 8, "lr": 1e-5, "asked": 1}
ATLAS: dict[str, Any] = {"steps": 100, "batch": 8, "lr": 2e-4, "asked": 8}


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck mend``; None: the paper's value with an LLM of your own, a smaller one on the atlas."""

    out: Path = Path("runs/mend")
    """Folder that the run writes."""
    llm: str | None = None
    """The frozen LLM, a folder or Hub id; by default the one that ships with limbeck."""
    distiller: str | None = None
    """What learns: a smaller model of the LLM's family, or a distiller to go on from, which keeps how it reads."""
    pretrain: str | None = None
    """Corpus for stage 1 (jsonl, txt, parquet, folder or Hub id); paper: C4. Without one there is no stage 1."""
    tasks: Path | None = None
    """Folder of tasks in MetaICL's format for stage 2; by default those of the atlas."""
    partition: str | None = None
    """Which tasks train and which judge: <tasks>/partitions/<name>.json, by default all; of the atlas, by default
    held_out_task. all: every task, every partition."""
    file_shots: int | None = None
    """Where one task has several training files, the shots in the name of the one to train on; MetaICL: 16384."""
    file_seed: int | None = None
    """Likewise the seed; MetaICL: 100."""
    length: int | None = None
    """Vectors; released scripts: 100."""
    shots: int = 16
    """Demonstrations of an episode; released code."""
    asked: int | None = None
    """Queries for each set of demonstrations, in one pass; released code: 1, atlas: 8."""
    layout: str | None = None
    """Text layout; released code: mend (a space before the answer, nothing between demonstrations)."""
    channel: bool = False
    """Swap inputs and outputs; released scripts: direct."""
    limit: int | None = None
    """Tokens per example; released code: 256, and at most a quarter of what the LLM can read."""
    budget: int | None = None
    """Tokens of demonstrations for the distiller; released code: 643, and at most what it can read."""
    context: int | None = None
    """Tokens of demonstrations for the teacher; released code: 767, and at most what it can read."""
    groups: int = 1
    """Groups of demonstrations that are read apart; released scripts."""
    enter: Literal["embeddings", "states"] = "embeddings"
    """Where vectors enter an encoder-decoder: encoder inputs or encoder outputs; not in the release, a choice."""
    query: Literal["decoder", "encoder"] = "decoder"
    """Which side of an encoder-decoder reads the query; released data code."""
    init: Literal["vocab", "random"] = "vocab"
    """How placeholders begin; released scripts of stage 2."""
    share: float = 0.8
    """Share of a document that plays the demonstrations (the paper's beta)."""
    temperature: float = 1.0
    """Temperature of the distillation loss, without a factor T^2; released code."""
    kd: float = 1.0
    """Weight of the distillation loss (the paper's lambda); 0 is HyperTuning: no teacher, stage 1 on plain loss."""
    ce: float = 1.0
    """Weight of the answer loss in stage 2; paper: 1."""
    label_noise: float = 0.0
    """Share of stage 2's answers replaced by random ones, to see what the teacher protects from; paper: 0."""
    pretrain_steps: int = 30_000
    """Optimizer steps of stage 1; released scripts."""
    pretrain_lr: float = 5e-5
    """Learning rate of stage 1; released scripts."""
    steps: int | None = None
    """Optimizer steps of stage 2; released scripts: 30,000, atlas: 100."""
    batch: int | None = None
    """Rows per batch; released scripts: 1 on each of 8 GPUs, atlas: 8."""
    lr: float | None = None
    """Learning rate of stage 2, decaying linearly; released scripts: 1e-5, atlas: 2e-4."""
    cap: int = 16_384
    """Most training rows of one task; MetaICL."""
    llm_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen LLM; released code: int8."""
    judged: int = 8
    """Test tasks per partition to judge the distiller on afterwards, 0 for none; a choice."""
    queries: int = 32
    """Queries per judged task; a choice."""


def first_goal(cfg: Config) -> Objective:
    """Stage 1: agree with the teacher on every position of the query; without a teacher, predict its tokens."""
    return soft(temperature=cfg.temperature, on="mask") if cfg.kd > 0 else hard()


def second_goal(cfg: Config) -> Objective:
    """Stage 2: the answer's loss, and agreement with the teacher on every position of the query."""
    parts = {"ce": (cfg.ce, hard()), "kl": (cfg.kd, soft(temperature=cfg.temperature, on="mask"))}
    return weighted(**{name: part for name, part in parts.items() if part[0] > 0})


def mend_step(lm: Any, distiller: Distiller, goal: Objective, taught: bool = True) -> Step:
    """One LM, two views: the student reads the distiller's vectors, the teacher (if any) the demonstrations' text."""
    vectors, text = views(lm, distiller)
    return distill_step(vectors, text if taught else lambda batch: Signals(), goal)


def views(lm: Any, distiller: Distiller) -> tuple[View, View]:
    """The LM behind the distiller's vectors, and behind the demonstrations' text."""
    vectors = compressed_context(lm, lambda b: distiller(b["demos"], b["demos_mask"]), distiller.reading.enter)
    return vectors, full_context(lm)


def mend(
    lm: Any,
    distiller: Distiller,
    pretrain: Iterable[Batch] | None,
    meta: Iterable[Batch] | None,
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
) -> dict[str, float]:
    """Train ``distiller`` in place for the frozen ``lm``: stage 1 on ``pretrain``, stage 2 on ``meta``; None skips one.

    The streams are those of ``context.streams``. Returns what ``fit`` says of each stage, as ``<stage>_<name>``.
    """
    freeze(lm)
    cfg, said = settled(cfg), dict[str, float]()
    for name, stream, goal, steps, lr in (
        ("pretrain", pretrain, first_goal(cfg), cfg.pretrain_steps, cfg.pretrain_lr),
        ("meta", meta, second_goal(cfg), cfg.steps, cfg.lr),
    ):
        if stream is None:
            continue
        stage = Stage(
            name,
            mend_step(lm, distiller, goal, taught=cfg.kd > 0),
            train={"distiller": distiller},
            stream=stream,
            steps=steps or 0,
            optim=Optim(lr or 0.0, "linear"),
            accumulate=cfg.accumulate,
            frozen={"llm": lm},
            seed=cfg.seed,
            save_every=cfg.save_every,
        )
        said |= {f"{name}_{key}": value for key, value in fit(stage, out, engine).items()}
    return said


def settled(cfg: Config) -> Config:
    """The configuration with a value in the place of every None that stands for the paper's or the atlas's."""
    usual = (ATLAS if cfg.llm is None else PAPER) | {"partition": "held_out_task" if cfg.tasks is None else "all"}
    return replace(cfg, **{name: value for name, value in usual.items() if getattr(cfg, name) is None})


def main(cfg: Config) -> Path:
    """Train a distiller for ``cfg.llm``; writes it, its scores beside in-context learning's, and a report."""
    check(cfg)
    seed_all(cfg.seed)
    full = settled(cfg)
    lm, tokenizer = load_llm(full.llm or LLM, full.llm_dtype)
    distiller = first_distiller(full, lm, tokenizer)
    require(
        full.asked == 1 or not distiller.host.seq2seq,
        f"--asked {full.asked}: an encoder-decoder reads one query per row; leave it at 1",
    )
    pretrain, notes = corpus(full, distiller)
    splits = tasks(full)
    train = {task.name: task for split in splits for task in split.train}  # partitions of the atlas share some
    meta = episode_stream(
        distiller,
        list(train.values()),
        full.batch or 1,
        full.shots,
        full.seed,
        cap=full.cap,
        noise=full.label_noise,
        asked=full.asked or 1,
    )
    run = begin(cfg, "mend")
    device = run.accelerator.device
    both = views(freeze(lm).to(device), distiller.eval().to(device))
    batches = [to_device(stream.at(0), device) for stream in (pretrain, meta) if stream]
    run.heed(joined(doctor(*both, tokenizer, batches=[batch], rows=2) for batch in batches))
    said = mend(lm, distiller, pretrain, meta, full, run.stage_dir, run.accelerator)
    contexts = makers(lm, tokenizer, {"MEND": distiller})
    results = [
        result
        for split in splits
        for result in compare(contexts, split.test[: full.judged], full.shots, (full.seed,), full.queries, split.name)
    ]
    tables = [result_table(results, f"Test tasks, {full.shots} demonstrations")] if results else []
    for table in tables:
        table.print()
    measured = {**said, **notes, **scores(results)}
    return run.finish(distiller, None, measured, [results_table(t) for t in tables], full.llm or LLM)


def check(cfg: Config) -> None:
    """Refuse weights and numbers that would train nothing, or nonsense, before anything is loaded or written."""
    parts = f"--kd {cfg.kd} and --ce {cfg.ce}"
    require(min(cfg.kd, cfg.ce) >= 0 < cfg.kd + cfg.ce, f"{parts}: expected weights of at least 0, one of them above 0")
    require(cfg.temperature > 0, f"--temperature {cfg.temperature}: expected a number above 0")
    require(cfg.judged >= 0, f"--judged {cfg.judged}: expected a number of tasks, 0 for none")
    asked = 1 if cfg.asked is None else cfg.asked
    counts = {"queries": cfg.queries, "cap": cfg.cap, "pretrain-steps": cfg.pretrain_steps, "asked": asked}
    for flag, value in counts.items():
        require(value >= 1, f"--{flag} {value}: expected a whole number of at least 1")
    require(0 < cfg.pretrain_lr < float("inf"), f"--pretrain-lr {cfg.pretrain_lr}: expected a learning rate above 0")


def first_distiller(cfg: Config, lm: Any, tokenizer: Any) -> Distiller:
    """What ``cfg.distiller`` names, ready to be trained for ``lm``; by default the one that ships with limbeck."""
    require(cfg.distiller or not cfg.llm, "--llm needs --distiller: a smaller model of its family, or a distiller")
    names = ("length", "groups", "layout", "channel", "limit", "budget", "context", "enter", "query")
    reading = {name: getattr(cfg, name) for name in names}
    return open_distiller(cfg.distiller or DISTILLER, lm, cfg.llm or LLM, tokenizer, cfg.init, cfg.seed, **reading)


def corpus(cfg: Config, distiller: Distiller) -> tuple[Batches | None, dict[str, float]]:
    """The documents of stage 1, no more than it reads, and how many were too short; None without a corpus."""
    if cfg.pretrain is None:
        return None, {}
    rows = cfg.pretrain_steps * (cfg.batch or 1) * cfg.accumulate
    texts = islice(read_text(cfg.pretrain), rows)
    stream, short = document_stream(distiller, texts, cfg.batch or 1, cfg.seed, cfg.share)
    return stream, {"pretrain_documents_too_short": short}


def tasks(cfg: Config) -> list[Split]:
    """Per partition the tasks that train and those that judge; MetaICL has other files for the two."""
    if cfg.tasks is None:
        found = atlas_partitions(cfg.partition or "held_out_task", train_tasks=300, seed=cfg.seed)
        return [Split(part.name, part.train, part.test) for part in found]
    train, numbered = read_tasks(cfg.tasks, cfg.file_seed, cfg.file_shots), seeds(cfg.tasks)
    judges = read_tasks(cfg.tasks, numbered[0], cfg.shots) if numbered and cfg.judged else train
    return [split_tasks(train, cfg.partition or "all", cfg.tasks, judges)]


def scores(results: Sequence[Result]) -> dict[str, float]:
    """Mean score of every context."""
    names = dict.fromkeys(result.context for result in results)
    return {f"score {name}": fmean(r.score for r in results if r.context == name) for name in names}
