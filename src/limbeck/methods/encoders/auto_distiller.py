"""AutoDistiller: which pipeline of `limbeck distiller` to try on new data, learned from past runs.

Paper:      He et al., SustaiNLP 2021, arXiv 2109.11105, section 3.5.
Says:       the share of the teacher's score that a student reaches can be predicted from the data and the pipeline, so
            the pipelines predicted best are tried first.
Parts:      data.describe | the records of `limbeck distiller`
Needs:      folders of finished runs of `limbeck distiller`, five at least, best on several data sets and pipelines.
Departures: a forest of 200 trees in the place of a tabular AutoML system; data are described by 24 numbers in the place
            of 100. Where all runs are of one data set, only the pipeline tells them apart.
Checked:    no reference exists: a rule planted in made-up runs is found.
Claim:      none measured yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limbeck.core.check import LimbeckError, require
from limbeck.core.save import read_json, write_json
from limbeck.data.describe import describe
from limbeck.methods.encoders.classification import task
from limbeck.report.sections import Cell, Table
from limbeck.run import Run, begin

LOSSES = ("mi", "mse", "ce", "cosine", "pkd", "attention_mse", "attention_ce", "none")
MAPPINGS = ("skip", "last", "single", "emd")
ALPHAS = (0.1, 0.5, 0.9)  # the paper's grid without its two ends
POLICIES: tuple[tuple[str, ...], ...] = ((), ("swap",), ("substitute",), ("substitute", "swap"))
TREES = 200
FEWEST = 5


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck auto_distiller``."""

    out: Path = Path("runs/auto_distiller")
    """Folder that the run writes; its best.json is a file for limbeck distiller --config."""
    runs: Path = Path("runs")
    """Folder under which finished runs of limbeck distiller lie, at any depth."""
    data: str | None = None
    """The new data: jsonl or tsv with text and label; by default the atlas's kinds of sentences."""
    top: int = 5
    """How many pipelines to propose; ours."""


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


def pipelines() -> list[dict[str, Any]]:
    """Every pipeline that may be proposed."""
    kinds = [("none", "skip", 0.9)]
    kinds += [(loss, mapping, 0.9) for loss, mapping in product(LOSSES[1:-1], MAPPINGS)]
    kinds += [("mi", mapping, alpha) for mapping, alpha in product(MAPPINGS, ALPHAS)]
    rest = product(kinds, ("ce", "mse"), (False, True), POLICIES)
    return [
        {"loss": kind[0], "mapping": kind[1], "alpha": kind[2], "logits": logits, "mixup": mixup}
        | {"augment": list(augment), "augment_rate": 0.1}
        for kind, logits, mixup, augment in rest
    ]


def auto_distiller(past: list[Past], data: Mapping[str, float], seed: int = 0) -> list[tuple[float, dict[str, Any]]]:
    """Every pipeline with the share that it is predicted to keep on ``data``, the best first."""
    from sklearn.ensemble import RandomForestRegressor

    require(len(past) >= FEWEST, f"only {len(past)} finished runs of limbeck distiller were found; {FEWEST} are needed")
    seen = np.array([features(run.settings, run.data) for run in past])
    forest = RandomForestRegressor(TREES, random_state=seed).fit(seen, [run.kept for run in past])
    asked = pipelines()
    shares = forest.predict(np.array([features(settings, data) for settings in asked]))
    return sorted(zip(map(float, shares), asked, strict=True), key=lambda pair: -pair[0])


def main(cfg: Config) -> Path:
    """Propose pipelines for ``cfg.data``; writes them, and the best as a configuration, to ``cfg.out``."""
    require(cfg.top >= 1, f"--top {cfg.top}: expected a whole number of at least 1")
    past = list(past_runs(cfg.runs))
    best = auto_distiller(past, describe(task(cfg.data, cfg.seed).train), cfg.seed)[: cfg.top]
    run = begin(cfg, "auto_distiller")
    write_json(run.out / "best.json", best[0][1] | ({"data": cfg.data} if cfg.data else {}))
    proposed = [{"predicted": share, **settings} for share, settings in best]
    columns = ("predicted share of the teacher", *best[0][1])
    cells: list[tuple[Cell, ...]] = [(share, *map(_shown, settings.values())) for share, settings in best]
    note = f"Learned from {len(past)} runs. limbeck distiller --config {run.out / 'best.json'} runs the first."
    table = Table("Pipelines to try", columns, cells, note)
    return run.finish(metrics={"runs": len(past), "pipelines": proposed}, sections=[table])


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)
