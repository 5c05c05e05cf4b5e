"""All tasks of the atlas, which of them the shipped language model never saw, and the five partitions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, permutations, zip_longest
from random import Random

from limbeck.atlas.kinds import (
    CLASS_CATEGORIES,
    CODE_SYSTEMS,
    LOCALES,
    STYLES,
    ClassTask,
    CodeTask,
    FormatTask,
    NameTask,
    Spec,
    class_task,
)
from limbeck.atlas.names import LOW
from limbeck.core.check import one_of
from limbeck.data.tasks import Task
from limbeck.data.templates import Example

MIN_ROWS = 32  # a task with fewer training or test rows is left out of the partitions


@lru_cache
def specs() -> tuple[Spec, ...]:
    """Every task of the atlas (about 8,000), in a fixed order."""
    found: list[Spec] = []
    for category in ("territory", "language", "currency", "script"):
        found += [NameTask(category, source, target) for source, target in permutations(LOCALES, 2)]
    found += [CodeTask(system, source) for system in CODE_SYSTEMS for source in LOCALES]
    found += [
        FormatTask(what, style, place) for what, styles in STYLES.items() for style in styles for place in LOCALES
    ]
    return (*found, *_class_specs())


def _class_specs() -> list[ClassTask]:
    found = [
        class_task("category", place, classes) for place in LOCALES for classes in _groups(CLASS_CATEGORIES, place, 6)
    ]
    for category in CLASS_CATEGORIES:
        found += [class_task("locale", category, classes) for classes in _groups(LOCALES, category, 60)]
    return found


def _groups(items: Sequence[str], seed: str, count: int) -> list[tuple[str, ...]]:
    """``count`` distinct sorted groups of two to four items."""
    rng = Random(f"groups-{seed}")
    found: set[tuple[str, ...]] = set()
    while len(found) < count:
        found.add(tuple(sorted(rng.sample(items, rng.randint(2, 4)))))
    return sorted(found)


def is_held_out(spec: Spec) -> bool:
    """True for the tasks that the shipped language model never saw: 15 % of all tasks, by hash."""
    return _hash(spec.name) % 100 < 15


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Partition:
    """Tasks to learn from and tasks to be judged on; no task is in both."""

    name: str
    train: list[Task]
    test: list[Task]


PARTITIONS = {
    "held_out_task": "train on tasks of every kind but amounts, test on other tasks of these kinds",
    "held_out_kind": "train on tasks of every kind but amounts, test on amounts",
    "hr_to_lr": "train on locales with much text, test on locales with little",
    "class_to_class": "train on classification, test on other classification tasks",
    "non_class_to_class": "train on everything but classification, test on the same classification tasks",
}


def partition(name: str, train_tasks: int = 60, test_tasks: int = 10, examples: int = 64, seed: int = 0) -> Partition:
    """One of ``PARTITIONS`` with ``train_tasks`` and ``test_tasks`` tasks of ``examples`` training and test rows each.

    Test tasks are tasks that the shipped language model never saw (``is_held_out``); training tasks are others, and no
    training task of any partition is an amount.
    ``seed`` draws the rows; which tasks take part follows from ``name`` alone.
    """
    one_of(name, PARTITIONS, "partition")
    known = [spec for spec in specs() if not is_held_out(spec) and _trains(name, spec)]
    unseen = [spec for spec in specs() if is_held_out(spec) and _tests(name, spec)]
    return Partition(name, _first(known, train_tasks, examples, seed), _first(unseen, test_tasks, examples, seed))


def partitions(name: str, train_tasks: int = 60, test_tasks: int = 10, seed: int = 0) -> list[Partition]:
    """``partition(name, ...)``, or with "all" every partition; no task trains in one of them and tests in another."""
    names = PARTITIONS if name == "all" else [one_of(name, [*PARTITIONS, "all"], "partition")]
    return [partition(each, train_tasks, test_tasks, seed=seed) for each in names]


def _trains(name: str, spec: Spec) -> bool:
    if spec.kind == "amount":
        return False
    if name == "hr_to_lr":
        return not places(spec) & set(LOW)
    return {"class_to_class": spec.kind == "class", "non_class_to_class": spec.kind != "class"}.get(name, True)


def _tests(name: str, spec: Spec) -> bool:
    if name == "hr_to_lr":
        return spec.kind != "amount" and bool(places(spec)) and places(spec) <= set(LOW) | {"en"}
    if name == "held_out_kind":
        return spec.kind == "amount"
    return spec.kind == "class" if name.endswith("to_class") else spec.kind != "amount"


def places(spec: Spec) -> set[str]:
    """The locales a task is about."""
    return set(spec.name.replace("+", "-").split("-")) & set(LOCALES)


def _first(found: list[Spec], count: int, examples: int, seed: int) -> list[Task]:
    """The first ``count`` tasks of the hash order that have ``MIN_ROWS`` rows on each side."""
    built = (build(spec, examples, seed) for spec in _in_turn(found))
    large = (task for task in built if min(len(task.train), len(task.test)) >= min(MIN_ROWS, examples))
    return list(islice(large, count))


def _in_turn(found: list[Spec]) -> list[Spec]:
    """The tasks by hash, the kinds taking turns so that the many name tasks do not crowd out the rest."""
    by_kind: dict[str, list[Spec]] = {}
    for spec in sorted(found, key=lambda s: _hash("order" + s.name)):
        by_kind.setdefault(spec.kind, []).append(spec)
    turns = chain.from_iterable(zip_longest(*by_kind.values()))
    return [spec for spec in turns if spec is not None]


def build(spec: Spec, examples: int = 64, seed: int = 0) -> Task:
    """The task with rows: half of the draw (at most ``examples``) trains, the rest tests; no row is in both."""
    rng = Random(f"{spec.name}-{seed}")
    drawn = spec.pairs(rng, 2 * examples)
    rows = [Example(spec.name, x, y, spec.options(rng, key, y)) for key, x, y in drawn]
    rows = [row for row in rows if len(row.options) > 1]
    half = len(rows) // 2
    return Task(spec.name, train=rows[:half], test=rows[half:])
