"""Tasks, pools of tasks, and episodes: a query with demonstrations of the same task.

Files are MetaICL's: JSON lines with ``task``, ``input``, ``output`` and ``options``, in ``<name>_<split>.jsonl`` or
``<name>_<shots>_<seed>_<split>.jsonl``, split one of ``train``, ``dev``, ``test``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np

from limbeck.core.check import LimbeckError, one_of, require
from limbeck.data.ablations import ABLATIONS, random_label
from limbeck.data.read import field as value_of
from limbeck.data.read import files, read_jsonl
from limbeck.data.stream import permutation
from limbeck.data.templates import Example

Kind = Literal["classification", "multi-choice", "free-form"]

SPLITS = ("train", "dev", "test")
NAME = re.compile(r"^(?:.*?_)?(?:(?P<shots>\d+)_(?P<seed>\d+)_)?(?P<split>[^_]+)$")


@dataclass(frozen=True)
class Task:
    """A task's rows. ``kind``: one shared option list, options that vary from row to row, or none."""

    name: str
    train: list[Example] = field(default_factory=list, repr=False)
    dev: list[Example] = field(default_factory=list, repr=False)
    test: list[Example] = field(default_factory=list, repr=False)

    @cached_property
    def kind(self) -> Kind:
        """``classification``, ``multi-choice`` or ``free-form``, read from the options of all rows."""
        lists = {tuple(sorted(row.options)) for row in (*self.train, *self.dev, *self.test)} - {()}
        return "free-form" if not lists else "classification" if len(lists) == 1 else "multi-choice"


def read_examples(path: str | Path) -> list[Example]:
    """The rows of one file, checked one by one."""
    return [_example(row, f"{path}:{number}") for number, row in read_jsonl(path)]


def read_tasks(path: str | Path, seed: int | None = None, shots: int | None = None) -> list[Task]:
    """Every task in a file or, recursively, in a folder, sorted by name.

    MetaICL keeps one file per number of shots and seed: ``seed`` and ``shots`` choose among them (files whose names
    carry no numbers are always read). Two files of one task and split would mix their rows, so that is refused.
    """
    rows: dict[tuple[str, str], list[Example]] = {}
    origin: dict[tuple[str, str], Path] = {}
    for file in files(path, (".jsonl",)):
        name = _file_name(file)
        if _other(name["seed"], seed) or _other(name["shots"], shots):
            continue
        for row in read_examples(file):
            key = row.task, name["split"]
            first = origin.setdefault(key, file)
            require(
                first == file,
                f"{file}: task {row.task!r} has a {key[1]} file already, {first}; choose with seed and shots "
                "(limbeck mend: --file-seed and --file-shots)",
            )
            rows.setdefault(key, []).append(row)
    require(rows, f"{path}: no file has seed {seed} and {shots} shots; check the file names")
    return [_task(name, rows, origin) for name in sorted({task for task, _ in rows})]


def seeds(path: str | Path) -> list[int]:
    """The seeds that occur in the file names of a folder of tasks, sorted."""
    found = {_file_name(file)["seed"] for file in files(path, (".jsonl",))}
    return sorted(int(seed) for seed in found if seed is not None)


def _file_name(file: Path) -> dict[str, Any]:
    match = NAME.match(file.stem)
    assert match is not None  # the last group takes any name
    one_of(match["split"], SPLITS, f"{file}: the last part of the file's name is the split")
    return match.groupdict()


def _other(found: str | None, wanted: int | None) -> bool:
    return found is not None and wanted is not None and int(found) != wanted


def _task(name: str, rows: dict[tuple[str, str], list[Example]], origin: dict[tuple[str, str], Path]) -> Task:
    for split in SPLITS:
        some = [bool(row.options) for row in rows.get((name, split), [])]
        require(
            all(some) or not any(some),
            f"{origin.get((name, split))}: task {name!r} has options in some rows only; give them in all or in none",
        )
    return Task(name, *(rows.get((name, split), []) for split in SPLITS))


def _example(row: dict[str, Any], where: str) -> Example:
    task, text, output = (value_of(row, name, str, where) for name in ("task", "input", "output"))
    given = row.get("options") or []
    require(
        isinstance(given, list) and all(isinstance(o, str) for o in given),
        f"{where}: options must be a list of strings",
    )
    require(task, f"{where}: the field 'task' is empty; name the task")
    require(text.strip(), f"{where}: the field 'input' is empty; a query needs text")
    require(output.strip(), f"{where}: the field 'output' is empty; an example needs an answer")
    if given:
        _check_options(given, output, where)
    return Example(task, text, output, tuple(given))


def _check_options(options: list[str], output: str, where: str) -> None:
    require(
        len(options) > 1,
        f"{where}: there is one option, {options[0]!r}; choosing needs at least two, or leave options out",
    )
    twice = {o for o in options if sum(o.strip() == other.strip() for other in options) > 1}
    require(not twice, f"{where}: the option {min(twice, default='')!r} is given more than once; options must differ")
    require(all(o.strip() for o in options), f"{where}: an option is empty; options must have text")
    require(output in options, f"{where}: the output {output!r} is not among the options {options}")


@dataclass(frozen=True)
class Episode:
    """Demonstrations and the query behind them; ``more`` holds further queries of the same demonstrations."""

    demos: tuple[Example, ...]
    query: Example
    more: tuple[Example, ...] = ()

    @property
    def queries(self) -> tuple[Example, ...]:
        """Every query; each is answered from the demonstrations alone, not from the queries beside it."""
        return (self.query, *self.more)


class TaskPool:
    """The training rows of several tasks as one pool: an item is one row, so a task is drawn in proportion to its size.

    ``cap``: at most so many rows of a task take part (16,384 in MetaICL and MEND).
    """

    def __init__(self, tasks: Sequence[Task], cap: int = 16_384) -> None:
        require(tasks, "the pool has no tasks; check the path or the partition")
        for task in tasks:
            require(task.train, f"task {task.name!r} has no training rows; leave it out or add a _train file")
        names = [task.name for task in tasks]
        require(len(set(names)) == len(names), f"the pool has two tasks of one name: {sorted(names)}")
        self.tasks = list(tasks)
        self.rows = [task.train[:cap] for task in tasks]
        self.ends = list(accumulate(map(len, self.rows)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __repr__(self) -> str:
        return f"TaskPool({len(self.tasks)} tasks, {len(self)} rows)"

    def place(self, item: int) -> tuple[int, int]:
        """Which task, and which of its rows, item ``item`` is."""
        task = int(np.searchsorted(self.ends, item, side="right"))
        return task, item - (self.ends[task] - len(self.rows[task]))


class Episodes:
    """Endless episodes of a pool; episode ``i`` depends only on ``(seed, i)``, whatever was drawn before and by whom.

    Every row is a query once per epoch, in an order shuffled per epoch; its ``shots`` demonstrations are other rows of
    the same task, drawn uniformly without replacement and anew at every visit. ``ablation`` changes demonstrations (see
    ``data.ablations``); ``noise`` is the probability that a query's output is replaced by a random label. ``asked``
    queries go with each set of demonstrations, fewer where a task has not so many rows: the row whose turn it is, and
    others that are no demonstration.
    """

    def __init__(
        self,
        pool: TaskPool,
        shots: int = 16,
        seed: int = 0,
        ablation: str = "none",
        noise: float = 0.0,
        asked: int = 1,
    ) -> None:
        require(shots >= 1, f"an episode needs at least one demonstration, but shots is {shots}")
        require(asked >= 1, f"an episode needs at least one query, but {asked} are asked for")
        require(0 <= noise <= 1, f"noise is a probability, but got {noise}")
        one_of(ablation, ABLATIONS, "ablation")
        for task, rows in zip(pool.tasks, pool.rows, strict=True):
            if len(rows) <= shots:
                raise LimbeckError(
                    f"task {task.name!r} has {len(rows)} training rows, but {shots} demonstrations and a query need "
                    f"{shots + 1}; lower shots or add rows"
                )
        self.pool, self.shots, self.seed, self.ablation, self.noise = pool, shots, seed, ablation, noise
        self.asked = asked
        self.position = 0

    def __getitem__(self, index: int) -> Episode:
        rng = np.random.default_rng([self.seed, 1, index])
        epoch, place = divmod(index, len(self.pool))
        task, row = self.pool.place(int(permutation(len(self.pool), self.seed, epoch)[place]))
        rows = self.pool.rows[task]
        drawn = rng.choice(len(rows) - 1, min(self.shots + self.asked, len(rows)) - 1, replace=False)
        others = [rows[i + (i >= row)] for i in drawn]
        queries = [rows[row], *others[self.shots :]]
        asked = [random_label(query, rows, rng) if rng.random() < self.noise else query for query in queries]
        demos = tuple(ABLATIONS[self.ablation](demo, rows, rng) for demo in others[: self.shots])
        return Episode(demos, asked[0], tuple(asked[1:]))

    def __iter__(self) -> Iterator[Episode]:
        while True:
            self.position += 1
            yield self[self.position - 1]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position."""
        self.position = int(state["position"])

    def __repr__(self) -> str:
        how = (
            f"shots={self.shots}, seed={self.seed}, ablation={self.ablation!r}, noise={self.noise}, asked={self.asked}"
        )
        return f"Episodes({self.pool!r}, {how}, position={self.position})"


def demonstrations(task: Task, shots: int = 16, seed: int = 0, ablation: str = "none") -> tuple[Example, ...]:
    """The demonstrations that a test task is evaluated with: ``shots`` rows of its training split in random order.

    The same for the same ``(seed, task name)``. Raises if the split has fewer rows (MetaICL asserts the same).
    """
    have = len(task.train)
    require(
        have >= shots >= 1, f"task {task.name!r} has {have} training rows, but {shots} demonstrations are asked for"
    )
    rng = np.random.default_rng([seed, *task.name.encode()])
    chosen = [task.train[i] for i in rng.permutation(have)[:shots]]
    return tuple(ABLATIONS[one_of(ablation, ABLATIONS, "ablation")](row, task.train, rng) for row in chosen)
