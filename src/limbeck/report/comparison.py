"""Several runs on one page: their metrics side by side, their curves over each other, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.core.check import require
from limbeck.core.save import read_json, write_atomic
from limbeck.report.page import page
from limbeck.report.run_report import curves
from limbeck.report.sections import Cell, Curve, Points, Section, Table
from limbeck.report.values import flat, show


@dataclass(frozen=True)
class Past:
    """A run read back: its name on the page, record, metrics and curves by title."""

    name: str
    record: Mapping[str, Any]
    metrics: Mapping[str, Any]
    curves: Mapping[str, Curve]


def read_run(folder: Path, name: str = "") -> Past:
    """The run in ``folder``; one that has not finished has no metrics, and that is no mistake."""
    record = folder / "run.json"
    require(
        record.is_file(), f"{folder}: expected the folder of a run, but it holds no run.json; name one that --out gave"
    )
    finished = (folder / "metrics.json").is_file()
    metrics = read_json(folder / "metrics.json") if finished else {}
    return Past(name or folder.name, read_json(record), metrics, {curve.title: curve for curve in curves(folder)})


def compare(folders: Sequence[Path], out: Path) -> Path:
    """Write the comparison of the runs in ``folders`` to the HTML file ``out``."""
    require(len(folders) > 1, f"--runs: expected at least two folders of runs, but got {len(folders)}")
    require(out.suffix == ".html", f"--out {out}: expected a file that ends in .html")
    runs = [read_run(folder, name) for folder, name in zip(folders, names(folders), strict=True)]
    title = f"{len(runs)} runs compared"
    write_atomic(out, page(title, sections(runs), ", ".join(run.name for run in runs)))
    return out


def names(folders: Sequence[Path]) -> list[str]:
    """The shortest names that tell the folders apart."""
    paths = [folder.resolve().parts for folder in folders]
    depth = next((n for n in range(1, 20) if len({path[-n:] for path in paths}) == len(paths)), 1)
    return ["/".join(path[-depth:]) for path in paths]


def sections(runs: Sequence[Past]) -> list[Section]:
    """Metrics, curves, and the settings and versions in which the runs differ."""
    environments = [
        {name: run.record.get(name) for name in ("method", "commit", "versions", "platform")} for run in runs
    ]
    return [
        _side_by_side("Metrics", runs, [run.metrics for run in runs]),
        *_overlaid(runs),
        _side_by_side("Settings that differ", runs, [run.record["config"] for run in runs], differing=True),
        _side_by_side("Environments that differ", runs, environments, differing=True),
    ]


def _side_by_side(
    title: str, runs: Sequence[Past], values: Sequence[Mapping[str, Any]], differing: bool = False
) -> Table:
    leaves = [dict(flat(value)) for value in values]
    rows: list[Sequence[Cell]] = []
    for key in dict.fromkeys(key for one in leaves for key in one):
        cells = [one.get(key) for one in leaves]
        if not differing or any(cell != cells[0] for cell in cells):
            rows.append([key, *(cell if isinstance(cell, int | float) else show(cell) for cell in cells)])
    return Table(title, ["", *(run.name for run in runs)], rows, note="" if rows else "None.")


def _overlaid(runs: Sequence[Past]) -> list[Curve]:
    found = []
    for title in dict.fromkeys(title for run in runs for title in run.curves):
        lines: dict[str, Points] = {
            run.name: next(iter(run.curves[title].series.values())) for run in runs if title in run.curves
        }
        found.append(Curve(title, lines))
    return found
