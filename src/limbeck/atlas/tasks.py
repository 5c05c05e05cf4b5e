"""In-context tasks without number, made from the names of the world.

Only the demonstrations say what a task asks for: the same name may have to be translated into any locale, turned into any
code, or put into a class whose label is an arbitrary word. Six kinds:

========  ==================================================================================================
name      a territory, language, currency ... from one locale into another          ``name-territory-de-fi``
code      a territory's name to one of its codes                                     ``code-alpha3-ro``
date      an ISO date to a locale's long, medium or short form                       ``date-long-sw``
number    a plain number to a locale's decimal or percent form                       ``number-decimal-hi``
amount    a number and a currency to the form of a locale                            ``amount-accounting-pl``
class     a name to the arbitrary word that stands for its category or its locale    ``class-locale-script-da+nl+sv``
========  ==================================================================================================

Every task is multi-choice but ``class``, which is classification: the wrong options of a translation are the same thing in
other locales, so without demonstrations the answer cannot be known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from itertools import chain, islice, permutations, zip_longest
from random import Random
from typing import Protocol

from babel.dates import format_date
from babel.numbers import format_currency, format_decimal, format_percent

from limbeck.atlas import names
from limbeck.core.check import one_of
from limbeck.data.tasks import Task
from limbeck.data.templates import Example

LOCALES = (*names.HIGH, *names.LOW)
CODE_SYSTEMS = ("alpha2", "alpha3", "numeric", "currency", "language")
CURRENCIES = "EUR USD GBP JPY RON PLN INR BRL TRY CHF SEK KRW".split()
OPTIONS = 4
MIN_ROWS = 32  # a task with fewer training or test rows is left out of the partitions
KINDS = ("name", "code", "date", "number", "amount", "class")

# Words that mean nothing here but stand for a class; which word stands for which class differs from task to task.
LABELS = (
    "apple river stone cloud tiger lamp north velvet copper piano garden rocket silver window maple ocean candle bridge "
    "falcon pepper marble violet anchor desert feather ginger harbor island jacket kettle lemon meadow needle olive "
    "pillow quartz ribbon saddle thunder umbrella"
).split()


class Spec(Protocol):
    """What a task is before it has examples: drawing them costs nothing until somebody asks."""

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""

    @property
    def name(self) -> str:
        """The task's name, which says all that it is."""

    def pairs(self, rng: Random, count: int) -> list[tuple[str, str, str]]:
        """``count`` distinct (key, input, output), fewer if the task has no more."""

    def options(self, rng: Random, key: str, output: str) -> tuple[str, ...]:
        """The options of one example, the output among them, in random order."""


def _choices(rng: Random, output: str, others: Iterator[str] | Sequence[str]) -> tuple[str, ...]:
    """The output and up to ``OPTIONS - 1`` other distinct texts, shuffled."""
    found = [output]
    for other in others:
        if len(found) == OPTIONS:
            break
        if other.lower() not in {text.lower() for text in found}:
            found.append(other)
    rng.shuffle(found)
    return tuple(found)


def _sample(rng: Random, items: Sequence, count: int) -> list:
    return rng.sample(items, min(count, len(items)))


@dataclass(frozen=True)
class NameTask:
    """Translate a name of ``category`` from ``source`` into ``target``."""

    category: str
    source: str
    target: str
    kind = "name"

    @property
    def name(self) -> str:
        return f"name-{self.category}-{self.source}-{self.target}"

    def pairs(self, rng: Random, count: int) -> list[tuple[str, str, str]]:
        here, there = names.names(self.category, self.source), names.names(self.category, self.target)
        keys = _differing(self.category, self.source, self.target)
        return [(key, here[key], there[key]) for key in _sample(rng, keys, count)]

    def options(self, rng: Random, key: str, output: str) -> tuple[str, ...]:
        places = rng.sample(LOCALES, len(LOCALES))
        tables = (names.names(self.category, place) for place in places)
        return _choices(rng, output, (table[key] for table in tables if key in table))


@lru_cache(maxsize=None)
def _differing(category: str, source: str, target: str) -> list[str]:
    """Keys whose names differ between two locales and are short enough for a demonstration."""
    here, there = names.names(category, source), names.names(category, target)
    return [k for k in here if k in there and here[k].lower() != there[k].lower() and len(here[k] + there[k]) <= 48]


@dataclass(frozen=True)
class CodeTask:
    """Look up a territory's code in ``system`` from its name in ``source``."""

    system: str
    source: str
    kind = "code"

    @property
    def name(self) -> str:
        return f"code-{self.system}-{self.source}"

    def pairs(self, rng: Random, count: int) -> list[tuple[str, str, str]]:
        table, here = names.codes(self.system), names.names("territory", self.source)
        return [(key, here[key], table[key]) for key in _sample(rng, [k for k in here if k in table], count)]

    def options(self, rng: Random, key: str, output: str) -> tuple[str, ...]:
        others = [names.codes(system) for system in rng.sample(CODE_SYSTEMS, len(CODE_SYSTEMS))]
        return _choices_cased(rng, output, [table[key] for table in others if key in table])


def _choices_cased(rng: Random, output: str, others: list[str]) -> tuple[str, ...]:
    """As ``_choices``, but DE and de are two codes."""
    found = [output, *dict.fromkeys(other for other in others if other != output)][:OPTIONS]
    rng.shuffle(found)
    return tuple(found)


@dataclass(frozen=True)
class FormatTask:
    """Write a date, number or amount in ``style`` as ``locale`` does."""

    what: str
    style: str
    locale: str

    @property
    def kind(self) -> str:
        return self.what

    @property
    def name(self) -> str:
        return f"{self.what}-{self.style}-{self.locale}"

    def pairs(self, rng: Random, count: int) -> list[tuple[str, str, str]]:
        found: dict[str, str] = {}
        while len(found) < count:
            key = _plain(self.what, rng)
            found[key] = written(self.what, self.style, self.locale, key)
        return [(key, key, output) for key, output in found.items()]

    def options(self, rng: Random, key: str, output: str) -> tuple[str, ...]:
        others = [(style, place) for style in STYLES[self.what] for place in LOCALES]
        rng.shuffle(others)
        return _choices(rng, output, (written(self.what, style, place, key) for style, place in others))


STYLES = {"date": ("long", "medium", "short"), "number": ("decimal", "percent"), "amount": ("standard", "accounting")}


def _plain(what: str, rng: Random) -> str:
    """A date, number or amount in the form that every task reads: ISO 8601, a dot for the decimals, the code last."""
    if what == "date":
        return (date(1950, 1, 1) + timedelta(days=rng.randrange(36500))).isoformat()
    number = f"{rng.randrange(1, 10 ** rng.randint(4, 7))}.{rng.randrange(1, 100):02d}"
    return f"{number} {rng.choice(CURRENCIES)}" if what == "amount" else number


@lru_cache(maxsize=200_000)
def written(what: str, style: str, locale: str, key: str) -> str:
    """The plain form ``key`` as ``locale`` writes it (babel, CLDR patterns)."""
    where = names.parse(locale)
    if what == "date":
        return format_date(date.fromisoformat(key), style, locale=where)
    if what == "number":
        number = float(key)
        return (format_decimal if style == "decimal" else format_percent)(number, locale=where)
    number, currency = key.split()
    return format_currency(
        float(number) * (1 if style == "standard" else -1), currency, locale=where, format_type=style
    )


@dataclass(frozen=True)
class ClassTask:
    """Say which class a name belongs to, by the arbitrary word that stands for the class.

    ``by="category"``: names of several categories in the locale ``fixed``; ``by="locale"``: names of the category ``fixed``
    in several locales.
    """

    by: str
    fixed: str
    classes: tuple[str, ...]
    labels: tuple[str, ...]
    kind = "class"

    @property
    def name(self) -> str:
        return f"class-{self.by}-{self.fixed}-{'+'.join(self.classes)}"

    def pairs(self, rng: Random, count: int) -> list[tuple[str, str, str]]:
        tables = [self._table(c) for c in self.classes]
        found: dict[str, tuple[str, str, str]] = {}
        for index in range(2 * count):
            place = index % len(tables) if index < len(tables) else rng.randrange(len(tables))
            text = rng.choice(tables[place])
            found.setdefault(text, (text, text, self.labels[place]))
        drawn = list(found.values())[:count]
        rng.shuffle(drawn)
        return drawn

    def _table(self, one: str) -> list[str]:
        category, locale = (one, self.fixed) if self.by == "category" else (self.fixed, one)
        return _short_names(category, locale)

    def options(self, rng: Random, key: str, output: str) -> tuple[str, ...]:
        return self.labels


@lru_cache(maxsize=None)
def _short_names(category: str, locale: str) -> list[str]:
    return [text for text in names.names(category, locale).values() if len(text) <= 24]


CLASS_CATEGORIES = ("territory", "language", "currency", "script")


def class_task(by: str, fixed: str, classes: Sequence[str], labels: Sequence[str] | None = None) -> ClassTask:
    """A classification task; without ``labels`` the words follow from the task's name, so they are always the same."""
    chosen = tuple(classes)
    words = labels or Random(f"{by}-{fixed}-{chosen}").sample(LABELS, len(chosen))
    return ClassTask(by, fixed, chosen, tuple(words))


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
    rng, found = Random(f"groups-{seed}"), set()
    while len(found) < count:
        found.add(tuple(sorted(rng.sample(items, rng.randint(2, 4)))))
    return sorted(found)


def is_held_out(spec: Spec) -> bool:
    """True for tasks that the shipped language model never saw: every amount, and 15 % of all other tasks by hash."""
    return spec.kind == "amount" or _hash(spec.name) % 100 < 15


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
    "held_out_kind": "train on every kind but amounts, test on amounts",
    "hr_to_lr": "train on locales with much text, test on locales with little",
    "class_to_class": "train on classification, test on other classification tasks",
    "non_class_to_class": "train on everything but classification, test on the same classification tasks",
}


def partition(name: str, train_tasks: int = 60, test_tasks: int = 10, examples: int = 64, seed: int = 0) -> Partition:
    """One of ``PARTITIONS`` with ``train_tasks`` and ``test_tasks`` tasks of ``examples`` training and test rows each.

    Test tasks are tasks that the shipped language model never saw (``is_held_out``); training tasks are ones it did.
    ``seed`` draws the rows; which tasks take part follows from ``name`` alone.
    """
    one_of(name, PARTITIONS, "partition")
    known = [spec for spec in specs() if not is_held_out(spec) and _trains(name, spec)]
    unseen = [spec for spec in specs() if is_held_out(spec) and _tests(name, spec)]
    return Partition(name, _first(known, train_tasks, examples, seed), _first(unseen, test_tasks, examples, seed))


def _trains(name: str, spec: Spec) -> bool:
    if name == "hr_to_lr":
        return not _places(spec) & set(names.LOW)
    return {"class_to_class": spec.kind == "class", "non_class_to_class": spec.kind != "class"}.get(name, True)


def _tests(name: str, spec: Spec) -> bool:
    if name == "hr_to_lr":
        return spec.kind != "amount" and bool(_places(spec)) and _places(spec) <= set(names.LOW) | {"en"}
    if name == "held_out_kind":
        return spec.kind == "amount"
    return spec.kind == "class" if name.endswith("to_class") else spec.kind != "amount"


def _places(spec: Spec) -> set[str]:
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
    """The task with rows: the first half of the draw (at most ``examples``) trains, then as many test, no row in both."""
    rng = Random(f"{spec.name}-{seed}")
    drawn = spec.pairs(rng, 2 * examples)
    rows = [Example(spec.name, x, y, spec.options(rng, key, y)) for key, x, y in drawn]
    rows = [row for row in rows if len(row.options) > 1]
    half = len(rows) // 2
    kind = "classification" if spec.kind == "class" else "multi-choice"
    return Task(spec.name, train=rows[:half], dev=[], test=rows[half:], kind=kind)
