"""AutoDistiller: which pipeline of `limbeck distiller` to try on new data, learned from past runs.

Paper:      He et al., SustaiNLP 2021, arXiv 2109.11105, section 3.5.
Says:       the share of the teacher's score that a student reaches can be predicted from the data and the pipeline, so
            the pipelines predicted best are tried first.
Parts:      data.describe | the records of `limbeck distiller`
Needs:      folders of finished runs of `limbeck distiller`, five at least, best on several data sets and pipelines; or
            what `limbeck distiller` needs, to make short ones first.
Departures: a forest of 200 trees in the place of a tabular AutoML system; data are described by 24 numbers in the place
            of 100. Where all runs are of one data set, only the pipeline tells them apart. Without past runs, a few
            short ones of pipelines drawn at random stand in for the paper's 1239.
Checked:    no reference exists: a rule planted in made-up runs is found, and one that real runs follow.
Claim:      none measured yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limbeck.core.check import LimbeckError, require
from limbeck.core.save import read_json, write_json
from limbeck.data.describe import describe
from limbeck.methods.encoders import distiller
from limbeck.methods.encoders.classification import ATLAS, Job, job_of, task, with_tuned_teacher
from limbeck.report.sections import Cell, Table
from limbeck.run import Run, Started, begin, save_artefact

LOSSES = ("mi", "mse", "ce", "cosine", "pkd", "attention_mse", "attention_ce", "none")
MAPPINGS = ("skip", "last", "single", "emd")
ALPHAS = (0.1, 0.5, 0.9)  # the paper's grid without its two ends
POLICIES: tuple[tuple[str, ...], ...] = ((), ("swap",), ("substitute",), ("substitute", "swap"))
SAME = tuple(
    "seed device precision data teacher student teacher_steps steps batch length accumulate save_every tracker".split()
)
TREES = 200
FEWEST = 5


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck auto_distiller``."""

    out: Path = Path("runs/auto_distiller")
    """Folder that the run writes; its best.json is a file for limbeck distiller --config."""
    runs: Path | None = None
    """Folder under which finished runs of limbeck distiller lie, at any depth; by default short ones are made first."""
    data: str | None = None
    """The new data: jsonl or tsv with text and label; by default the atlas's kinds of sentences."""
    top: int = 5
    """How many pipelines to propose; ours."""
    trials: int = 6
    """Without --runs: how many short runs of pipelines drawn at random are made, in the folder trials; ours."""
    teacher: str = ATLAS
    """Without --runs: teacher of the short runs, as in limbeck distiller."""
    student: str = "every-other"
    """Without --runs: student of the short runs, as in limbeck distiller."""
    teacher_steps: int = 100
    """Without --runs: optimizer steps that fine-tune a teacher that is no classifier yet; ours."""
    steps: int = 20
    """Without --runs: optimizer steps of a short run; ours."""
    batch: int = 32
    """Without --runs: rows per batch; released scripts: 16 or 32."""
    length: int = 64
    """Without --runs: tokens per row; released scripts: 128."""


class Past(NamedTuple):
    """A finished run: its settings, its data in numbers, and the share of the teacher's accuracy that it kept."""

    settings: Mapping[str, Any]
    data: Mapping[str, float]
    kept: float


def past_runs(folder: Path) -> Iterator[Past]:
    """The finished runs of ``limbeck distiller`` below ``folder``; others, and unfinished ones, are passed over."""
    require(folder.is_dir(), f"--runs {folder}: no such folder; give one that holds runs of limbeck distiller")
    for path in sorted(folder.rglob("run.json")):
        record, metrics = read_json(path), path.with_name("metrics.json")
        if record.get("method") != "distiller" or not metrics.exists():
            continue
        said = read_json(metrics)
        try:
            kept = said["held_out"]["accuracy"] / max(said["held_out"]["teacher_accuracy"], 1e-9)
            yield Past(record["config"], said["data"], float(kept))
        except KeyError as error:
            raise LimbeckError(f"{metrics}: the value {error} is missing; run limbeck distiller there again") from None


def features(settings: Mapping[str, Any], data: Mapping[str, float]) -> list[float]:
    """A pipeline on a data set, as numbers in a fixed order."""
    loss, augment = settings["loss"], list(settings["augment"])
    told = [float(loss == name) for name in LOSSES]
    told += [float(settings["mapping"] == name) if loss != "none" else 0.0 for name in MAPPINGS]
    told += [settings["alpha"] if loss == "mi" else -1.0, float(settings["logits"] == "mse"), float(settings["mixup"])]
    told += [augment.index(name) + 1.0 if name in augment else 0.0 for name in ("substitute", "translate", "swap")]
    told += [settings["augment_rate"] if augment else 0.0]
    return [*told, *(data[name] for name in sorted(data))]


def pipelines(substitutes: bool = True) -> list[dict[str, Any]]:
    """Every pipeline that may be proposed; ``substitutes``: those too that need a model of the data's language."""
    kinds = [("none", "skip", 0.9)]
    kinds += [(loss, mapping, 0.9) for loss, mapping in product(LOSSES[1:-1], MAPPINGS)]
    kinds += [("mi", mapping, alpha) for mapping, alpha in product(MAPPINGS, ALPHAS)]
    policies = [policy for policy in POLICIES if substitutes or "substitute" not in policy]
    rest = product(kinds, ("ce", "mse"), (False, True), policies)
    return [
        {"loss": kind[0], "mapping": kind[1], "alpha": kind[2], "logits": logits, "mixup": mixup}
        | {"augment": list(augment), "augment_rate": 0.1}
        for kind, logits, mixup, augment in rest
    ]


def auto_distiller(
    past: Sequence[Past], data: Mapping[str, float], seed: int = 0, substitutes: bool = True
) -> list[tuple[float, dict[str, Any]]]:
    """Every pipeline with the share that it is predicted to keep on ``data``, the best first."""
    from sklearn.ensemble import RandomForestRegressor

    require(len(past) >= FEWEST, f"only {len(past)} finished runs of limbeck distiller were found; {FEWEST} are needed")
    seen = np.array([features(run.settings, run.data) for run in past])
    forest = RandomForestRegressor(TREES, random_state=seed).fit(seen, [run.kept for run in past])
    asked = pipelines(substitutes)
    shares = forest.predict(np.array([features(settings, data) for settings in asked]))
    return sorted(zip(map(float, shares), asked, strict=True), key=lambda pair: -pair[0])


def main(cfg: Config) -> Path:
    """Propose pipelines for ``cfg.data``; writes them, and the best as a configuration, to ``cfg.out``."""
    require(cfg.top >= 1, f"--top {cfg.top}: expected a whole number of at least 1")
    require(cfg.trials >= FEWEST, f"--trials {cfg.trials}: expected {FEWEST} or more, to learn from")
    rows = task(cfg.data, cfg.seed)
    data = describe(rows.train)
    if cfg.runs is not None:
        past = list(past_runs(cfg.runs))
        best = auto_distiller(past, data, cfg.seed, cfg.data is None)[: cfg.top]
        return _finish(begin(cfg, "auto_distiller"), len(past), best, {"data": cfg.data} if cfg.data else {})
    asked, base = pipelines(cfg.data is None), {name: value for name, value in asdict(cfg).items() if name in SAME}
    job = job_of(distiller.Config(**base), rows)
    run = begin(cfg, "auto_distiller")
    base["teacher"] = teacher_of_trials(job, distiller.Config(**base), run)
    drawn = np.random.default_rng([cfg.seed, 17]).permutation(len(asked))[: cfg.trials]
    past = [tried(base, asked[i], run.out / "trials" / str(n), run) for n, i in enumerate(drawn)]
    best = auto_distiller(past, data, cfg.seed, cfg.data is None)[: cfg.top]
    kept = [one.kept for one in past]
    shares = {"trials, mean": sum(kept) / len(kept), "best trial": max(kept), "first proposal, predicted": best[0][0]}
    shares["first proposal, tried"] = tried(base, best[0][1], run.out / "trials" / "proposed", run).kept
    more = {name: base[name] for name in ("data", "teacher", "student") if base[name]}
    return _finish(run, len(past), best, more, shares)


def teacher_of_trials(job: Job, cfg: distiller.Config, run: Started) -> str:
    """The name of a teacher that knows the task: the one given, or it fine-tuned, once, into ``trials/teacher``."""
    if job.tuned:
        return cfg.teacher
    job, _ = with_tuned_teacher(job, cfg, run)
    folder = run.out / "trials" / "teacher"
    folder.mkdir(parents=True, exist_ok=True)
    for part in (job.teacher, job.tokenizer):
        save_artefact(part, folder)
    return str(folder)


def tried(base: Mapping[str, Any], pipeline: Mapping[str, Any], out: Path, run: Started) -> Past:
    """One run of limbeck distiller in ``out``; one that is finished is read."""
    if not (out / "metrics.json").exists():
        distiller.main(distiller.Config(**{**base, **pipeline, "augment": tuple(pipeline["augment"]), "out": out}))
    run.accelerator.wait_for_everyone()  # the first process writes what all of them read
    return next(past_runs(out))


def _finish(
    run: Started,
    runs: int,
    best: Sequence[tuple[float, dict[str, Any]]],
    more: Mapping[str, Any],
    shares: Mapping[str, float] | None = None,
) -> Path:
    write_json(run.out / "best.json", best[0][1] | dict(more))
    columns = ("predicted share of the teacher", *best[0][1])
    cells: list[tuple[Cell, ...]] = [(share, *map(_shown, settings.values())) for share, settings in best]
    note = f"Learned from {runs} runs. limbeck distiller --config {run.out / 'best.json'} runs the first."
    tables = [Table("Pipelines to try", columns, cells, note)]
    if shares:
        tables.insert(0, Table("What short runs keep of the teacher's accuracy", ("", "share"), list(shares.items())))
    proposed = [{"predicted": share, **settings} for share, settings in best]
    return run.finish(metrics={"runs": runs, "pipelines": proposed, "kept": dict(shares or {})}, sections=tables)


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)
