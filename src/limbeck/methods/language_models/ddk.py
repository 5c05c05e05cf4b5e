"""DDK: distilling domain knowledge.

Paper:      Liu et al., NeurIPS 2024, arXiv 2407.16154 (no released code).
Says:       a student is not equally far behind its teacher everywhere. Every K steps compare their perplexities domain
            by domain, and draw more of the text where the ratio is high; a share of the weights is spread evenly and
            the rest remembers what it was, so that they do not swing.
Parts:      data.reweight (domain weights) | data.mixture (Blend) | analyses.perplexity | objectives (soft, hard)
Needs:      causal student and teacher that share a tokenizer; text in at least two domains. Signals: logits. Batch:
            ids, mask, targets, answer.
Departures: rows are drawn one by one with the weights of the moment, where the paper draws the text of an interval
            ahead. The first look is after step 1. The learning rate falls to 0, not to a tenth. The KL as printed has
            the student first; the standard one, teacher first, is the default and the other a setting.
Checked:    from the equations: shares over nine intervals at four alphas, without smoothing, and for ratios in the
            thousands; the loss in both directions.
Claim:      claims/ddk.py, against the natural and the equal mixture, and without its smoothing: confirmed on four
            domains, worst and mean ratio to the teacher's perplexity below all three in every seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from limbeck.analyses.doctor import doctor
from limbeck.analyses.perplexity import DomainPerplexity
from limbeck.atlas.worked import worked
from limbeck.core.batch import Batch
from limbeck.core.check import one_of, require
from limbeck.core.fit import fit
from limbeck.core.stage import Objective, Optim, Stage, distill_step
from limbeck.core.track import say
from limbeck.crossing import side_by_side
from limbeck.data.domains import check_count, domain_batches, natural, part_domains, text_domains
from limbeck.data.mixture import Blend
from limbeck.data.reweight import DomainWeights, Rule, discrepancy, smoothed
from limbeck.data.stream import Batches
from limbeck.losses.divergence import forward_kl, reverse_kl
from limbeck.models.load import Dtype
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import weighted
from limbeck.report.sections import Cell, Curve, Table
from limbeck.run import Run, begin, seed_all
from limbeck.students.load import load_student
from limbeck.teachers import Teacher, frozen, load_teacher, ready

MIXTURES = ("ddk", "unsmoothed", "equal", "natural")
DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}
ATLAS = {"amount": 600, "date": 400, "class": 300, "name": 150}  # texts by kind of task
WORN = 4.0  # passes over a domain's text from which repeating it teaches little more (2305.16264)


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck ddk``."""

    out: Path = Path("runs/ddk")
    """Folder that the run writes."""
    teacher: str = "limbeck:atlas/weights/lm"
    """Folder or Hub id of a causal LM; for prompts or chats also a store of `limbeck teach`. By default limbeck's."""
    teacher_dtype: Dtype = "float32"
    """Number format in which the teacher is held; losses are computed in float32 whatever it is."""
    student: str = "every-other"
    """Folder or Hub id; 6x384 or half: the teacher's architecture anew; every-other: a copy of half of its layers."""
    data: str | None = None
    """A folder with one file per domain, or rows with a field domain (text, prompts or chats); None: the atlas."""
    domain_field: str | None = None
    """The field of a row that names its domain; by default the file's name in a folder, else the field domain."""
    domains: tuple[str, ...] = ()
    """Domains to learn from; by default all that the data has."""
    mixture: Literal["ddk", "unsmoothed", "equal", "natural"] = "ddk"
    """How domains are weighed; the paper's, without its smoothing, or as a baseline equal or natural shares."""
    alpha: float = 0.5
    """Smoothing: 1 - alpha of the weights is spread evenly; paper."""
    interval: int | None = None
    """Steps from one look at the domains to the next; paper: 1000 of 30,000. None: a tenth of the run."""
    validation: int = 32
    """Rows of each domain that the weights follow, of a long one; paper: 500. 32 suit the atlas."""
    gamma: float = 0.2
    """Weight of the KL beside the ordinary loss; paper."""
    divergence: Literal["forward_kl", "reverse_kl"] = "forward_kl"
    """KL from the teacher to the student, or as the paper prints it (see Departures)."""
    temperature: float = 1.0
    """Temperature of the KL; paper."""
    steps: int = 200
    """Optimizer steps; paper: 30,000. 200 suit the atlas."""
    batch: int = 8
    """Rows per batch, of all domains; a choice that suits the atlas."""
    length: int = 128
    """Tokens per row; a choice that suits the atlas."""
    lr: float = 5e-4
    """Peak learning rate, cosine; ours. Paper: 3e-5 for students of 1 to 2 billion parameters."""
    warmup: float = 0.03
    """Share of the steps that warm up; paper: 1000 of 30,000."""


class Domain(NamedTuple):
    """What is learned from, and what the weights follow."""

    stream: Batches
    held: Sequence[Batch]


def ddk(
    student: nn.Module,
    teacher: Teacher,
    domains: Mapping[str, Domain],
    cfg: Config,
    out: Path | None = None,
    engine: Any = None,
    tokenizer: Any = None,
) -> tuple[dict[str, float], DomainWeights]:
    """Train ``student`` in place towards ``teacher`` (a model or a source) on ``domains``, weighed as ``cfg`` says.

    ``out`` and ``engine`` go to ``fit``; with their ``tokenizer``, output layers that are padded differently are cut to
    one width. Returns what ``fit`` says with the passes over each domain's text, and the weights with all their looks.
    """
    rule, goal = parts(cfg)
    check_count(domains, "ddk")
    both = side_by_side(student, teacher, tokenizer)
    sizes = natural({name: domain.stream for name, domain in domains.items()})
    weights = dict.fromkeys(sizes, 1.0) if cfg.mixture == "equal" else sizes
    stream = Blend({name: domain.stream for name, domain in domains.items()}, cfg.batch, weights, cfg.seed)
    look = DomainPerplexity(*both, {name: domain.held for name, domain in domains.items()})
    follow = DomainWeights(stream, look, cfg.interval or max(1, cfg.steps // 10), rule)
    said = fit(
        Stage(
            "ddk",
            distill_step(*both, goal),
            train={"student": student},
            stream=stream,
            steps=cfg.steps,
            optim=Optim(cfg.lr, "cosine", cfg.warmup),
            accumulate=cfg.accumulate,
            after=[follow],
            frozen=frozen(teacher),
            seed=cfg.seed,
            save_every=cfg.save_every,
        ),
        out,
        engine,
    )
    return {**said, **{f"passes.{name}": count / sizes[name] for name, count in stream.drawn.items()}}, follow


def parts(cfg: Config) -> tuple[Rule | None, Objective]:
    """The rule for the weights and the objective that ``cfg`` asks for; settings that make no sense are refused."""
    one_of(cfg.mixture, MIXTURES, "--mixture")
    one_of(cfg.divergence, DIVERGENCES, "--divergence")
    require(0 <= cfg.alpha <= 1, f"--alpha {cfg.alpha}: expected a share from 0 to 1")
    require(cfg.gamma >= 0, f"--gamma {cfg.gamma}: expected a weight of at least 0")
    require(cfg.temperature > 0, f"--temperature {cfg.temperature}: expected a number above 0")
    for name, value in {"interval": cfg.interval, "validation": cfg.validation}.items():
        require(value is None or value >= 1, f"--{name} {value}: expected a whole number of at least 1")
    rule = {"ddk": smoothed(cfg.alpha), "unsmoothed": discrepancy}.get(cfg.mixture)
    goals: dict[str, Any] = {"hard": (1.0, hard())}
    if cfg.gamma:
        goals["soft"] = (cfg.gamma, soft(DIVERGENCES[cfg.divergence], cfg.temperature))
    return rule, weighted(**goals)


def main(cfg: Config) -> Path:
    """Distil ``cfg.teacher`` into ``cfg.student`` on the domains of ``cfg.data``; writes the student and its report."""
    seed_all(cfg.seed)
    parts(cfg)
    teacher, tokenizer = load_teacher(cfg.teacher, "causal", dtype=cfg.teacher_dtype)
    student = load_student(cfg.student, teacher, tokenizer, "causal")
    splits = part_domains(batches(cfg, tokenizer))  # what is reported must not be what the weights have followed
    inner = part_domains({name: split.stream for name, split in splits.items()}, most=-(-cfg.validation // cfg.batch))
    run = begin(cfg, "ddk")
    device = run.accelerator.device
    teacher = ready(teacher, device)
    both = side_by_side(student.eval().to(device), teacher, tokenizer)
    held = {name: split.on(device) for name, split in splits.items()}
    some = [{name: value[:2] for name, value in part[0].items()} for part in held.values()]
    run.heed(doctor(*both, tokenizer, batches=some, rows=2 * len(some)))
    judge = DomainPerplexity(*both, held)
    before = judge()
    domains = {name: Domain(split.stream, split.on(device)) for name, split in inner.items()}
    said, weights = ddk(student, teacher, domains, cfg, run.stage_dir, run.accelerator, tokenizer)
    after = judge()
    for name in domains:
        if (passes := said[f"passes.{name}"]) > WORN:
            say(f"domain {name!r}: its text was read {passes:.1f} times; more text would teach more than its weight")
    perplexity = {name: {"before": before[name][0], "after": s, "teacher": t} for name, (s, t) in after.items()}
    metrics = {**said, "held_out_perplexity": perplexity, "shares": weights.stream.weights}
    return run.finish(student, tokenizer, metrics, [table(perplexity, weights, said), curve(weights)])


def batches(cfg: Config, tokenizer: Any) -> dict[str, Batches]:
    """Streams by domain: the user's data, or four kinds of tasks of the atlas."""
    rest = tokenizer, cfg.length, cfg.batch, cfg.seed
    if cfg.data is not None:
        return domain_batches(cfg.data, *rest, cfg.domain_field, cfg.domains)
    chosen = {one_of(name, ATLAS, "--domains"): ATLAS[name] for name in cfg.domains or ATLAS}
    check_count(chosen, "--domains")
    return text_domains({name: worked(name, n, cfg.seed) for name, n in chosen.items()}, *rest)


def table(perplexity: Mapping[str, Mapping[str, float]], weights: DomainWeights, said: Mapping[str, float]) -> Table:
    """Each domain's weight at first and at last, how often its text was read, and who reads it how well."""
    rows: list[list[Cell]] = [
        [
            name,
            weights.looks[0][f"share.{name}"],
            weights.looks[-1][f"share.{name}"],
            said[f"passes.{name}"],
            *(found[side] for side in ("before", "after", "teacher")),
            found["after"] / found["teacher"],
        ]
        for name, found in perplexity.items()
    ]
    columns = ("domain", "weight at first", "at last", "passes", "perplexity before", "after", "teacher", "ratio after")
    return Table("Domains, on held-out rows", columns, rows, "Ratio: perplexity of the student over the teacher's.")


def curve(weights: DomainWeights) -> Curve:
    """How far behind the student was in each domain, look by look."""
    steps = [look["step"] for look in weights.looks]
    ratios = {
        name: (steps, [look[f"perplexity.{name}"] / look[f"teacher_perplexity.{name}"] for look in weights.looks])
        for name in weights.stream.weights
    }
    return Curve("Perplexity of the student over the teacher's", ratios, ylabel="ratio", log=True)
