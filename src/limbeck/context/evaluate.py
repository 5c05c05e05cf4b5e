"""Contexts side by side on the same tasks, demonstrations and queries: scores, and what each context costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean
from typing import Any

from limbeck.context.answer import Answerer, alone, behind_text, behind_vectors
from limbeck.context.costs import cache_bytes, prefill
from limbeck.context.distiller import Distiller
from limbeck.core.check import LimbeckError, require
from limbeck.core.save import read_json
from limbeck.data.tasks import Task, demonstrations
from limbeck.data.templates import Example
from limbeck.evaluation.metrics import task_score
from limbeck.evaluation.table import Table

Maker = Callable[[Sequence[Example]], Answerer]


@dataclass(frozen=True)
class Result:
    """One context on one task with one draw of demonstrations."""

    context: str
    partition: str
    task: str
    seed: int
    score: float
    positions: int
    flops: float
    cache_bytes: int
    seconds: float
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """Tasks to train on and tasks to be judged on, by the name of their partition."""

    name: str
    train: list[Task]
    test: list[Task]


def makers(lm: Any, tokenizer: Any, distillers: Mapping[str, Distiller]) -> dict[str, Maker]:
    """The usual contexts: nothing, the demonstrations' text, and one per distiller, by the distiller's name."""
    collate = next(iter(distillers.values())).collate()
    found: dict[str, Maker] = {
        "zero-shot": lambda demos: alone(lm, tokenizer, collate),
        "ICL": lambda demos: behind_text(lm, tokenizer, collate, demos),
    }
    return found | {name: _with(distiller, lm, tokenizer) for name, distiller in distillers.items()}


def _with(distiller: Distiller, lm: Any, tokenizer: Any) -> Maker:
    return lambda demos: behind_vectors(distiller.distill(demos), lm, tokenizer)


def compare(
    contexts: Mapping[str, Maker],
    tasks: Iterable[Task],
    shots: int = 16,
    seeds: Sequence[int] = (0,),
    queries: int | None = None,
    partition: str = "",
) -> list[Result]:
    """Every context on every task and seed: the same demonstrations, the first ``queries`` test rows (None: all)."""
    found = []
    for task in tasks:
        check_task(task, shots)
        rows = (task.test or task.dev)[:queries]
        for seed in seeds:
            demos = demonstrations(task, shots, seed)
            found += [_result(name, make(demos), task, rows, seed, partition) for name, make in contexts.items()]
    return found


def check_task(task: Task, shots: int) -> None:
    """Refuse a task without queries, or with fewer training rows than demonstrations are asked for."""
    require(
        task.test or task.dev, f"task {task.name!r} has neither test nor dev rows; add a _test file or leave it out"
    )
    demonstrations(task, shots)


def _result(name: str, answerer: Answerer, task: Task, rows: Sequence[Example], seed: int, partition: str) -> Result:
    began = time.perf_counter()
    answers = answerer.answers(rows)
    seconds = (time.perf_counter() - began) / len(rows)
    score = task_score(task.kind, answers, [row.output for row in rows])
    tokens = round(fmean(len(answerer.collate.query(row.input, row.output).ids) for row in rows))
    ahead = answerer.positions
    flops, memory = prefill(answerer.lm, ahead, tokens), cache_bytes(answerer.lm, ahead)
    return Result(name, partition, task.name, seed, score, ahead, flops, memory, seconds, tuple(answers))


def result_table(results: Sequence[Result], title: str = "Contexts compared") -> Table:
    """Columns are contexts; rows, for each partition, its score (mean over tasks, spread over seeds) and its costs."""
    table = Table(title, "partition")
    for partition in dict.fromkeys(r.partition for r in results):
        for name in dict.fromkeys(r.context for r in results):
            mine = [r for r in results if (r.context, r.partition) == (name, partition)]
            row = partition or "score"
            table.add(row, name, _by_seed(mine))
            table.add(f"{row} positions", name, fmean(r.positions for r in mine))
            table.add(f"{row} MFLOP", name, fmean(r.flops for r in mine) / 1e6)
            table.add(f"{row} KV kB", name, fmean(r.cache_bytes for r in mine) / 1e3)
            table.add(f"{row} ms", name, fmean(r.seconds for r in mine) * 1e3)
    return table


def _by_seed(results: Sequence[Result]) -> list[float]:
    """Mean over tasks, one per seed."""
    return [fmean(r.score for r in results if r.seed == seed) for seed in dict.fromkeys(r.seed for r in results)]


def split_tasks(tasks: Sequence[Task], name: str, folder: Path, judges: Sequence[Task] | None = None) -> Split:
    """The partition ``name`` of a folder of tasks: "all", or a file ``{"train": [...], "test": [...]}`` of task names.

    The file is ``partitions/<name>.json`` or ``config/<name>.json`` in the folder or beside it (MetaICL's ``config``).
    "all" trains on every task that has training rows and judges every task that has test or dev rows. ``judges``: the
    tasks with the rows to judge by, where those are other files than the ones to train on.
    """
    judges = tasks if judges is None else judges
    if name == "all":
        return Split(name, [t for t in tasks if t.train], [t for t in judges if t.test or t.dev])
    places = [base / kind / f"{name}.json" for base in (folder, folder.parent) for kind in ("partitions", "config")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise LimbeckError(f"partition {name!r}: expected the file {places[0]}, but there is none; or say all")
    said = read_json(path)
    require(
        isinstance(said, dict) and all(isinstance(said.get(part), list) for part in ("train", "test")),
        f"{path}: expected an object with the lists 'train' and 'test'",
    )
    both = sorted(set(said["train"]) & set(said["test"]))
    require(not both, f"{path}: {both[:1]} is in train and in test; a task belongs to one of them")
    return Split(name, _named(tasks, said["train"], path), _named(judges, said["test"], path))


def _named(tasks: Sequence[Task], names: Sequence[str], path: Path) -> list[Task]:
    known = {task.name: task for task in tasks}
    for name in names:
        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        require(name in known, f"{path}: there is no data for the task {name!r}{hint}")
    return [known[name] for name in names]
