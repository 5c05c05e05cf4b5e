"""What the on-policy methods share: models and prompts by name, a fine-tuned start, and what is measured.

Not a method: a method's ``main`` calls ``run_on_policy`` with its recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from limbeck.analyses.doctor import doctor
from limbeck.analyses.measure import measure
from limbeck.atlas import corpora
from limbeck.core.batch import Batch, to_device
from limbeck.core.check import require
from limbeck.core.fit import fit
from limbeck.core.signals import Signals, Source
from limbeck.core.stage import Objective, Optim, Stage, Step, distill_step, stage_settings
from limbeck.core.terms import Clock, Terms
from limbeck.crossing import side_by_side
from limbeck.data.compose import carried
from limbeck.data.held import Split, hold_out
from limbeck.data.prompts import prompt_batches
from limbeck.data.rollout import Rollout
from limbeck.data.samples import batch_of, samples_of
from limbeck.data.stream import Batches
from limbeck.data.writer import Sampling, Writer, end_tokens, silent
from limbeck.evaluation.model import head_width, start_token
from limbeck.losses.divergence import forward_kl, reverse_kl
from limbeck.models.load import load_model
from limbeck.models.placement import held, placed
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import weighted
from limbeck.report.sections import before_and_after
from limbeck.run import Started, begin, seed_all
from limbeck.sources.model import model_source
from limbeck.students.load import load_student

DOCUMENTS = 1500  # of the atlas, where the user names no data


class Job(NamedTuple):
    """What a recipe gets from the command line."""

    student: Any
    teacher: Any
    tokenizer: Any
    split: Split
    run: Started


def run_on_policy(cfg: Any, method: str, recipe: Callable[[Job], Mapping[str, Any]]) -> Path:
    """Load what ``cfg`` names, run ``recipe``, write the student and a report that measures it before and after."""
    seed_all(cfg.seed)
    teacher, tokenizer = load_model(cfg.teacher, "language", **held(cfg.teacher_dtype))
    student = load_student(cfg.student, teacher, tokenizer, "language")
    require(
        student.config.is_encoder_decoder == teacher.config.is_encoder_decoder,
        f"--student {cfg.student}: one of teacher and student is an encoder-decoder and the other is not",
    )
    split = hold_out(batches(cfg, tokenizer, student))
    job = Job(student, teacher, tokenizer, split, begin(cfg, method))
    device = job.run.accelerator.device
    both = side_by_side(student.eval().to(device), placed(teacher, device), tokenizer)
    job.run.heed(doctor(*both, tokenizer, batches=split.on(device)))
    before = judged(job, cfg)
    said = recipe(job)
    after = judged(job, cfg)
    note = "Nats per token. Own text: what the student itself writes after the same prompts."
    table = before_and_after(f"Student and teacher on {split.rows}", before, after, note)
    return job.run.finish(student, tokenizer, {**said, split.name: after, "before": before}, [table])


def batches(cfg: Any, tokenizer: Any, student: Any) -> Batches:
    """The prompts and completions that ``cfg`` names: the user's data, or English text of the atlas."""
    source = corpora.documents("en", DOCUMENTS, cfg.seed) if cfg.data is None else cfg.data
    start = start_token(student) if student.config.is_encoder_decoder else None
    return prompt_batches(source, tokenizer, cfg.length, cfg.batch, cfg.seed, cfg.new_tokens, start)


def judged(job: Job, cfg: Any) -> dict[str, float]:
    """Both KLs to the teacher and the negative log-likelihood on held-out text, and the KLs on the student's own."""
    device = job.run.accelerator.device
    compare = distill_step(*side_by_side(job.student.eval(), job.teacher, job.tokenizer), agreement())
    rows = job.split.on(device)
    write = writer(job.student, job.teacher, Sampling(cfg.new_tokens), job.tokenizer)
    own = [to_device(batch_of(write(samples_of(batch), cfg.seed + i)), device) for i, batch in enumerate(rows)]
    said = measure(compare, own)
    return measure(compare, rows) | {f"own_text_{name}": said[name] for name in ("forward_kl", "reverse_kl")}


def writer(
    student: Any,
    teacher: Any,
    how: Sampling,
    tokenizer: Any = None,
    ends: Sequence[int] | None = None,
    mixed: tuple[Any, float] | None = None,
) -> Writer:
    """A ``Writer`` of the student's that writes no id that the teacher cannot read.

    ``ends`` are the ids that end a text, by default what student and ``tokenizer`` say.
    """
    size = min(head_width(model) or 0 for model in (student, teacher)) or None
    return Writer(student, how, end_tokens(student, tokenizer) if ends is None else ends, mixed, size)


def agreement() -> Objective:
    """What is measured, never trained: both KLs to the teacher, and the student's negative log-likelihood."""
    return weighted(forward_kl=(1, soft(forward_kl)), reverse_kl=(1, soft(reverse_kl)), student_nll=(1, hard()))


def fine_tuned(
    student: nn.Module, stream: Iterable[Batch], cfg: Any, out: Path | None = None, engine: Any = None
) -> None:
    """Train ``student`` in place for ``cfg.sft_steps`` on the data's own completions; the stage is called "sft"."""
    if not cfg.sft_steps:
        return
    says, goal = model_source(student), hard()

    def step(batch: Batch, clock: Clock) -> Terms:
        return goal(says(batch), Signals(), batch, clock)

    fit(
        Stage("sft", step, {"student": student}, stream, cfg.sft_steps, Optim(cfg.lr), **stage_settings(cfg)),
        out,
        engine,
    )


def nll_on(student: nn.Module, held: Iterable[Batch]) -> Callable[[], float]:
    """A function that measures the student's negative log-likelihood per token on ``held``, as it stands then."""
    says, goal, held = model_source(student), hard(), list(held)

    def validate() -> float:
        device = next(student.parameters()).device
        with silent(student):
            step = lambda batch, clock: goal(says(batch), Signals(), batch, clock)  # noqa: E731
            return measure(step, (to_device(batch, device) for batch in held))["hard"]

    return validate


@dataclass(frozen=True)
class AlsoText:
    """``step``, and the ordinary language-modelling loss on the text that ``Beside`` has put into the batch."""

    step: Step
    student: Source
    weight: float = 1.0

    def __call__(self, batch: Batch, clock: Clock) -> Terms:
        """Terms of one micro-batch, one more of them called ``text``."""
        terms, text = self.step(batch, clock), carried(batch)
        (term,) = hard()(self.student(text), Signals(), text, clock).values()
        terms["text"] = term._replace(unit="text_answer", weight=self.weight)
        return terms


def shares(stream: Rollout) -> dict[str, float]:
    """What share of a rollout's batches was of which kind, for ``metrics.json``."""
    total = max(1, sum(stream.given.values()))
    return {f"share_{name}": count / total for name, count in stream.given.items()}
