"""``limbeck analyses loyalty``: how faithful a student's predictions are to those of one or several teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.analyses.loyalty import by_name, loyalty, range_loyalty, regression_loyalty
from limbeck.core.check import LimbeckError, require
from limbeck.core.save import write_json
from limbeck.data.read import read_jsonl
from limbeck.report.sections import Table
from limbeck.report.terminal import print_table


@dataclass(frozen=True)
class LoyaltyOf:
    """Settings of ``limbeck analyses loyalty``."""

    student: Path
    """The student's predictions: JSON lines, one item each, with "probabilities" {class: number} or a "score"."""
    teacher: tuple[Path, ...]
    """Each teacher's predictions of the same items in the same order; "label" beside them adds the accuracies."""
    weights: tuple[float, ...] = ()
    """Weight of each teacher in their average; by default uniform."""
    score_range: float | None = None
    """For scores: the width of their scale (5 for STS), which adds 1 - mean |difference| / width."""
    out: Path | None = None
    """JSON file to write besides the printed table."""


class Predictions(NamedTuple):
    """One file: the classes' names (none for scores), numbers n c or n, and the true classes where known."""

    classes: list[str]
    values: Tensor
    labels: list[str]


def measure_loyalty(cfg: LoyaltyOf) -> None:
    """Label and probability loyalty of a student to its teachers, or regression loyalty where they give scores."""
    require(cfg.teacher, "--teacher: expected at least one file of predictions")
    require(len(set(cfg.teacher)) == len(cfg.teacher), "--teacher: a file is named twice")
    student, teachers = read_predictions(cfg.student), {str(path): read_predictions(path) for path in cfg.teacher}
    for name, teacher in teachers.items():
        require(
            bool(student.classes) == bool(teacher.classes),
            f"{name} and {cfg.student}: scores against classes",
        )
    found = (_classes if student.classes else _scores)(cfg, student, teachers)
    columns = list(dict.fromkeys(measure for measures in found.values() for measure in measures))
    rows = [(name, *(measures.get(column) for column in columns)) for name, measures in found.items()]
    print_table(Table(f"Loyalty of {cfg.student}, {len(student.values)} items", ["", *columns], rows, digits=4))
    if cfg.out is not None:
        write_json(cfg.out, found)


def read_predictions(path: Path) -> Predictions:
    """The predictions in a JSON-lines file; every row has to be of the first row's kind and classes."""
    classes: list[str] | None = None
    values: list[Any] = []
    labels: list[str] = []
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        named = row.get("probabilities")
        if not isinstance(named, dict) and not isinstance(row.get("score"), int | float):
            raise LimbeckError(f'{where}: expected "probabilities" by class, or a number as "score"; got {sorted(row)}')
        here = list(named) if isinstance(named, dict) else []
        classes = here if classes is None else classes
        require(
            sorted(here) == sorted(classes), f"{where}: the classes are {here}, but line 1 has {classes or 'a score'}"
        )
        values.append(
            [_number(named[name], where) for name in classes] if isinstance(named, dict) else float(row["score"])
        )
        labels += [str(row["label"])] if "label" in row else []
    require(
        len(labels) in (0, len(values)), f"{path}: {len(labels)} of {len(values)} rows have a label; give all or none"
    )
    return Predictions(classes or [], torch.tensor(values, dtype=torch.float64), labels)


def _classes(cfg: LoyaltyOf, student: Predictions, teachers: Mapping[str, Predictions]) -> dict[str, dict[str, float]]:
    order = student.classes
    tables = {name: by_name(teacher.values, teacher.classes, order) for name, teacher in teachers.items()}
    labels = next((p.labels for p in (student, *teachers.values()) if p.labels), [])
    unknown = sorted(set(labels) - set(order))
    require(not unknown, f"the label {unknown[0] if unknown else ''!r} is none of the classes {order}")
    targets = torch.tensor([order.index(label) for label in labels]) if labels else None
    return loyalty(student.values, tables, targets, cfg.weights or None)


def _scores(cfg: LoyaltyOf, student: Predictions, teachers: Mapping[str, Predictions]) -> dict[str, dict[str, float]]:
    tables = {name: teacher.values for name, teacher in teachers.items()}
    sizes = {len(student.values), *map(len, tables.values())}
    require(len(sizes) == 1, f"the files hold different numbers of items: {sorted(sizes)}")
    shares = cfg.weights or [1 / len(tables)] * len(tables)
    require(len(shares) == len(tables) and abs(sum(shares) - 1) < 1e-6, "--weights: one per teacher, summing to 1")
    tables["average"] = sum((w * t for w, t in zip(shares, tables.values(), strict=True)), torch.zeros(()))
    found = {name: {"pearson": regression_loyalty(table, student.values)} for name, table in tables.items()}
    if cfg.score_range is not None:
        for name, table in tables.items():
            found[name]["range"] = range_loyalty(table, student.values, cfg.score_range)
    return found


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LimbeckError(f"{where}: a probability has to be a number, but is {value!r}")
    return float(value)


COMMANDS: dict[str, Callable[[Any], None]] = {"loyalty": measure_loyalty}
