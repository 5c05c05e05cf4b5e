"""Teacher hacking: is a student that imitates its teacher better still coming nearer to the truth?

Paper:      Tiapkin et al., ICML 2025, arXiv 2502.02671 (no released code).
Says:       put an oracle over teacher and student: both are first fine-tuned on its texts, then the student is
            distilled from the teacher. Followed on new prompts are the distance to the teacher (proxy) and to the
            oracle (golden). On a fixed set of the teacher's texts golden turns and rises while proxy still falls; new
            texts at every visit, or more varied prompts, keep it from turning.
Parts:      data.writer | data.rollout (Rollout, Share) | objectives (per_text) | analyses.hacking (OracleWatch, bend)
Needs:      oracle, teacher and student that share a tokenizer. Signals: logits. Batch: ids, mask, targets, answer.
Departures: any causal models or encoder-decoders, where the paper has T5. Texts that the metrics are measured on are
            written once by teacher and oracle, who do not change, so that looks differ by the student alone. Jeffreys'
            divergence is the mean of both KLs.
Checked:    metrics against exact enumeration of all texts of a small Markov chain; hacked and bend on curves of known
            shape; the sources by what they write.
Claim:      claims/teacher_hacking.py, offline against online texts, with a teacher whose error is made rough. Offline,
            the golden distance turns and ends 1.23 to 1.31 times its least; new texts never turn and end nearer to the
            oracle than their teacher is. But proxy rises too, so by the paper's definition this is no hacking yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from limbeck.analyses.doctor import doctor
from limbeck.analyses.hacking import OracleWatch, distance
from limbeck.core.batch import Batch, to_device
from limbeck.core.check import one_of, require
from limbeck.core.fit import fit
from limbeck.core.save import read_json, write_json
from limbeck.core.signals import Signals, Source
from limbeck.core.stage import Optim, Stage, distill_step, every, freeze
from limbeck.core.terms import Clock, Terms
from limbeck.crossing import side_by_side
from limbeck.data.policies import Share
from limbeck.data.rollout import Rollout
from limbeck.data.samples import Sample, batch_of, samples_of
from limbeck.data.stream import Batches
from limbeck.data.writer import Sampling, Writer, end_tokens
from limbeck.evaluation.model import head_width
from limbeck.losses.divergence import forward_kl, jsd, reverse_kl
from limbeck.methods.language_models.on_policy import batches, stage_settings
from limbeck.models.load import Dtype, load_model
from limbeck.objectives.texts import per_text
from limbeck.objectives.tokens import Divergence, hard
from limbeck.report.sections import Curve, KeyValues
from limbeck.run import Run, begin, seed_all
from limbeck.sources.model import model_source
from limbeck.sources.vocabulary import padded
from limbeck.students.load import load_student

DIVERGENCES: dict[str, tuple[Divergence, ...]] = {
    "forward_kl": (forward_kl,),
    "reverse_kl": (reverse_kl,),
    "jeffreys": (forward_kl, reverse_kl),
    "jsd": (jsd,),
}
"""What is compared; of several the mean."""
SOURCES = ("offline", "online_teacher", "online_student")


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck teacher_hacking``."""

    out: Path = Path("runs/teacher_hacking")
    """Folder that the run writes."""
    oracle: str = "limbeck:atlas/weights/lm"
    """Folder or Hub id of the language model that counts as the truth; by default the one that ships with limbeck."""
    teacher: str = "every-other"
    """Folder or Hub id, or made from the oracle: 6x384, half, every-other; the paper: a smaller model of the family."""
    student: str = "1x80"
    """Folder or Hub id, or made from the oracle as the teacher is; the paper: the next smaller model."""
    oracle_dtype: Dtype = "float32"
    """Number format in which the oracle is held."""
    data: str | None = None
    """jsonl with prompt and completion (only prompts are used), or running text, cut in two; by default the atlas."""
    source: Literal["offline", "online_teacher", "online_student"] = "offline"
    """Whose texts the student is distilled on: one fixed set by the teacher, or new ones at every visit."""
    fixed: float = 0.0
    """With an online source, the share of batches from the fixed set; a choice. The paper also mixes."""
    oracle_prompts: int = 200
    """Prompts whose texts by the oracle fine-tune teacher and student; paper: 100,000."""
    prompts: int = 200
    """Prompts to distil on, others than those; paper: 200,000."""
    responses: int = 1
    """Texts per prompt in the fixed set; paper: 1, and 2 or more where it studies variety."""
    validation: int = 64
    """Prompts that nobody trains on, for the metrics; a choice."""
    divergence: Literal["forward_kl", "reverse_kl", "jeffreys", "jsd"] = "forward_kl"
    """Of training and metrics; paper: forward KL, the others as variants."""
    teacher_steps: int = 60
    """Steps of the teacher's fine-tuning on the oracle's texts; a choice that suits the atlas."""
    student_steps: int = 60
    """Steps of the student's fine-tuning on them; a choice that suits the atlas."""
    steps: int = 300
    """Steps of distillation; paper: 390,625, 62 passes over the prompts."""
    look_every: int = 30
    """Steps between looks at the metrics; a choice."""
    batch: int = 8
    """Rows per batch; paper: 32."""
    length: int = 48
    """Tokens per row, prompt and completion; paper: 1024 and 128."""
    new_tokens: int = 24
    """Tokens of a text at most; paper: 128."""
    lr: float = 1e-3
    """Learning rate, constant after 5 % of warm-up; paper: 3e-4 for T5, 100 of 390,625 steps of warm-up."""


class Prompts(NamedTuple):
    """Prompts without completions, in three parts that share none."""

    oracle: list[Sample]
    student: list[Sample]
    validation: list[Sample]


def teacher_hacking(
    student: nn.Module,
    teacher: nn.Module,
    oracle: nn.Module,
    prompts: Prompts,
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
    ends: Sequence[int] | None = None,
) -> tuple[dict[str, Any], OracleWatch]:
    """Fine-tune ``teacher`` and ``student`` on the oracle's texts, distil, and look; both are trained in place.

    ``ends`` are the ids that end a text; ``out`` and ``engine`` go to ``fit``. Returns what it says together with the
    watch's verdict, and the watch with all its looks.
    """
    check(cfg)
    freeze(oracle)
    for model in (oracle, teacher, student) if engine is not None else ():  # they write before fit places them
        model.to(engine.device)
    models = {"oracle": oracle, "teacher": teacher, "student": student}
    size = min(head_width(model) or 0 for model in models.values()) or None
    by = {name: Writer(model, Sampling(cfg.new_tokens), ends, size=size) for name, model in models.items()}
    texts = written(by["oracle"], prompts.oracle, cfg, out, "oracle")
    imitate(teacher, texts, "teacher", cfg.teacher_steps, cfg, out, engine)
    imitate(student, texts, "student", cfg.student_steps, cfg, out, engine)
    fixed = written(by["teacher"], prompts.student * cfg.responses, cfg, out, "offline")
    held = {
        name: grouped(written(by[name], prompts.validation, cfg, out, f"validation-{name}"), cfg)
        for name in ("teacher", "oracle")
    }
    oracle.to(next(student.parameters()).device)
    says, taught, truth = alike(student, teacher, oracle)
    goal = per_text(*DIVERGENCES[cfg.divergence])
    watch = OracleWatch(student, says, taught, truth, held["teacher"], held["oracle"], goal)
    gap = distance(
        taught, truth, (to_device(batch, next(teacher.parameters()).device) for batch in held["oracle"]), goal
    )
    watch.look(0)
    said = fit(
        Stage(
            "distil",
            distill_step(says, taught, goal),
            train={"student": student},
            stream=source(cfg, fixed, by["teacher"], by["student"]),
            steps=cfg.steps,
            optim=Optim(cfg.lr, "constant", 0.05),
            after=[every(cfg.look_every, watch)],
            frozen={"teacher": teacher, "oracle": oracle},
            **stage_settings(cfg),
        ),
        out,
        engine,
    )
    digest = sha256(repr([row.completion for row in fixed]).encode()).hexdigest()[:16]
    return {**said, **watch.verdict(), "teacher_gap": gap, "fixed_texts": digest}, watch


def alike(*models: nn.Module) -> list[Source]:
    """The models as sources with equally many logits, however their output layers are padded.

    A model whose output layer does not say how wide it is counts as it is.
    """
    widths = [head_width(model) for model in models]
    least = min((width for width in widths if width), default=None)
    said = zip(models, widths, strict=True)
    return [model_source(m) if width in (least, None) else padded(model_source(m), least or 0) for m, width in said]


def source(cfg: Config, fixed: list[Sample], by_teacher: Writer, by_student: Writer) -> Iterable[Batch]:
    """The stream that ``cfg.source`` names, over the prompts of ``fixed``."""
    stream = Batches(fixed, batch_of, cfg.batch, cfg.seed)
    if cfg.source == "offline":
        return stream
    return Rollout(stream, by_teacher if cfg.source == "online_teacher" else by_student, Share(1 - cfg.fixed), cfg.seed)


def imitate(
    model: nn.Module, texts: list[Sample], name: str, steps: int, cfg: Config, out: Path | None, engine: Any
) -> None:
    """Fine-tune ``model`` in place on the oracle's texts."""
    if not steps:
        return
    says, goal = model_source(model), hard()

    def step(batch: Batch, clock: Clock) -> Terms:
        return goal(says(batch), Signals(), batch, clock)

    stream = Batches(texts, batch_of, cfg.batch, cfg.seed)
    fit(Stage(name, step, {"model": model}, stream, steps, Optim(cfg.lr, "cosine"), **stage_settings(cfg)), out, engine)


def written(write: Writer, rows: list[Sample], cfg: Config, out: Path | None, name: str) -> list[Sample]:
    """Texts for ``rows``, kept in ``out`` so that a run that is resumed reads the same ones."""
    path = None if out is None else Path(out) / "texts" / f"{name}.json"
    if path is not None and path.exists():
        return [Sample.of(row) for row in read_json(path)]
    made: list[Sample] = []
    for start in range(0, len(rows), 4 * cfg.batch):
        made += write(rows[start : start + 4 * cfg.batch], cfg.seed * 1_000_003 + start)
    if path is not None:
        write_json(path, [row.state() for row in made])
    return made


def grouped(rows: list[Sample], cfg: Config) -> list[Batch]:
    """The rows in batches, in order."""
    return [batch_of(rows[start : start + cfg.batch]) for start in range(0, len(rows), cfg.batch)]


def check(cfg: Config) -> None:
    """Refuse settings that make no sense."""
    one_of(cfg.source, SOURCES, "--source")
    one_of(cfg.divergence, DIVERGENCES, "--divergence")
    require(0 <= cfg.fixed <= 1, f"--fixed {cfg.fixed}: expected a share from 0 to 1")
    for name in ("oracle_prompts", "prompts", "responses", "validation", "look_every"):
        flag, value = name.replace("_", "-"), getattr(cfg, name)
        require(value >= 1, f"--{flag} {value}: expected a whole number of at least 1")


def prompts_of(cfg: Config, stream: Batches) -> Prompts:
    """As many prompts as ``cfg`` asks for, each in one part only."""
    seen: dict[tuple[int, ...], Sample] = {}
    wanted = cfg.oracle_prompts + cfg.prompts + cfg.validation
    for number in range(-(-(stream.size or 0) // stream.batch)):
        if len(seen) < wanted:
            rows = (Sample(row.prompt, [], row.source) for row in samples_of(stream.at(number)))
            seen |= {(*row.source, -1, *row.prompt): row for row in rows}
    found = list(seen.values())
    require(
        len(found) >= wanted,
        f"--oracle-prompts, --prompts and --validation ask for {wanted} different prompts, but the data has "
        f"{len(found)}; lower them or give more data",
    )
    one, two = cfg.oracle_prompts, cfg.oracle_prompts + cfg.prompts
    return Prompts(found[:one], found[one:two], found[two:wanted])


def main(cfg: Config) -> Path:
    """The experiment on what ``cfg`` names; writes the student and a report with both curves to ``cfg.out``."""
    check(cfg)
    seed_all(cfg.seed)
    oracle, tokenizer = load_model(cfg.oracle, "language", cfg.oracle_dtype)
    teacher, student = (load_student(name, oracle, tokenizer, "language") for name in (cfg.teacher, cfg.student))
    stream = batches(cfg, tokenizer, oracle)
    prompts = prompts_of(cfg, stream)
    run = begin(cfg, "teacher_hacking")
    device = run.accelerator.device
    both = side_by_side(student.eval().to(device), oracle.to(device), tokenizer)
    run.heed(doctor(*both, tokenizer, batches=[to_device(stream.at(0), device)]))
    ends = end_tokens(oracle, tokenizer)
    said, watch = teacher_hacking(student, teacher, oracle, prompts, cfg, run.stage_dir, run.accelerator, ends)
    looks = [{"step": look.step, "proxy": look.proxy, "golden": look.golden} for look in watch.looks]
    return run.finish(student, tokenizer, {**said, "looks": looks}, sections(watch, said), base_model=cfg.oracle)


def sections(watch: OracleWatch, said: Mapping[str, Any]) -> list[Any]:
    """Both distances over the steps, one against the other, and the verdict."""
    steps = [float(look.step) for look in watch.looks]
    proxy, golden = [look.proxy for look in watch.looks], [look.golden for look in watch.looks]
    verdict = {name: said[name] if said[name] is not None else "never" for name in watch.verdict()}
    return [
        Curve("Distance to teacher and oracle", {"proxy": (steps, proxy), "golden": (steps, golden)}, ylabel="nats"),
        Curve("Golden against proxy", {"student": (proxy, golden)}, xlabel="proxy", ylabel="golden"),
        KeyValues("Verdict", {**verdict, "teacher's own distance to the oracle": said["teacher_gap"]}),
    ]
