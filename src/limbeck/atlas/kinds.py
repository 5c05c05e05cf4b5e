"""In-context tasks without number, made from the names of the world.

Only the demonstrations say what a task asks for: the same name may have to be translated into any locale, turned
into any code, or put into a class whose label is an arbitrary word. Six kinds:

========  ==========================================================================================
name      a territory, language, currency ... from one locale into another    ``name-territory-de-fi``
code      a territory's name to one of its codes                              ``code-alpha3-ro``
date      an ISO date to a locale's long, medium or short form                ``date-long-sw``
number    a plain number to a locale's decimal or percent form                ``number-decimal-hi``
amount    a number and a currency to the form of a locale                     ``amount-accounting-pl``
class     a name to the word that stands for its category or locale           ``class-locale-script-da+nl``
========  ==========================================================================================

Every task is multi-choice but ``class``, which is classification: the wrong options of a translation are the same
thing in other locales, so without demonstrations the answer cannot be known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache, lru_cache
from random import Random
from typing import Protocol

from babel.dates import format_date
from babel.numbers import format_currency, format_decimal, format_percent

from limbeck.atlas import names

LOCALES = (*names.HIGH, *names.LOW)
CODE_SYSTEMS = ("alpha2", "alpha3", "numeric", "currency", "language")
CURRENCIES = ["EUR", "USD", "GBP", "JPY", "RON", "PLN", "INR", "BRL", "TRY", "CHF", "SEK", "KRW"]
OPTIONS = 4
KINDS = ("name", "code", "date", "number", "amount", "class")

# Words that mean nothing here but stand for a class; which word stands for which class differs from task to task.
LABELS = tuple(
    """
    apple river stone cloud tiger lamp north velvet copper piano garden rocket silver window maple ocean candle bridge
    falcon pepper marble violet anchor desert feather ginger harbor island jacket kettle lemon meadow needle olive
    pillow quartz ribbon saddle thunder umbrella""".split()
)


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


def _choices(rng: Random, output: str, others: Iterable[str]) -> tuple[str, ...]:
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
        """The task's name."""
        return f"name-{self.category}-{self.source}-{self.target}"

    def pairs(self, rng: Random, count: int) -> list[tuple[str, str, str]]:
        """Distinct (key, input, output)."""
        here, there = names.names(self.category, self.source), names.names(self.category, self.target)
        keys = _differing(self.category, self.source, self.target)
        return [(key, here[key], there[key]) for key in _sample(rng, keys, count)]

    def options(self, rng: Random, key: str, output: str) -> tuple[str, ...]:
        """The options of one example, shuffled."""
        places = rng.sample(LOCALES, len(LOCALES))
        tables = (names.names(self.category, place) for place in places)
        return _choices(rng, output, (table[key] for table in tables if key in table))


@cache
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
        """The task's name."""
        return f"code-{self.system}-{self.source}"

    def pairs(self, rng: Random, count: int) -> list[tuple[str, str, str]]:
        """Distinct (key, input, output)."""
        table, here = names.codes(self.system), names.names("territory", self.source)
        return [(key, here[key], table[key]) for key in _sample(rng, [k for k in here if k in table], count)]

    def options(self, rng: Random, key: str, output: str) -> tuple[str, ...]:
        """The options of one example, shuffled."""
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
        """One of ``KINDS``."""
        return self.what

    @property
    def name(self) -> str:
        """The task's name."""
        return f"{self.what}-{self.style}-{self.locale}"

    def pairs(self, rng: Random, count: int) -> list[tuple[str, str, str]]:
        """Distinct (key, input, output)."""
        found: dict[str, str] = {}
        while len(found) < count:
            key = _plain(self.what, rng)
            found[key] = written(self.what, self.style, self.locale, key)
        return [(key, key, output) for key, output in found.items()]

    def options(self, rng: Random, key: str, output: str) -> tuple[str, ...]:
        """The options of one example, shuffled."""
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
    plain, currency = key.split()
    accounting = style == "accounting"
    value = -float(plain) if accounting else float(plain)
    return format_currency(value, currency, locale=where, format_type="accounting" if accounting else "standard")


@dataclass(frozen=True)
class ClassTask:
    """Say which class a name belongs to, by the arbitrary word that stands for the class.

    ``by="category"``: names of several categories in the locale ``fixed``; ``by="locale"``: names of the category
    ``fixed`` in several locales.
    """

    by: str
    fixed: str
    classes: tuple[str, ...]
    labels: tuple[str, ...]
    kind = "class"

    @property
    def name(self) -> str:
        """The task's name."""
        return f"class-{self.by}-{self.fixed}-{'+'.join(self.classes)}"

    def pairs(self, rng: Random, count: int) -> list[tuple[str, str, str]]:
        """Distinct (key, input, output)."""
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
        """The options of one example, shuffled."""
        return self.labels


@cache
def _short_names(category: str, locale: str) -> list[str]:
    return [text for text in names.names(category, locale).values() if len(text) <= 24]


CLASS_CATEGORIES = ("territory", "language", "currency", "script")


def class_task(by: str, fixed: str, classes: Sequence[str], labels: Sequence[str] | None = None) -> ClassTask:
    """A classification task; without ``labels`` the words follow from the task's name, so they are always the same."""
    chosen = tuple(classes)
    words = labels or Random(f"{by}-{fixed}-{chosen}").sample(LABELS, len(chosen))
    return ClassTask(by, fixed, chosen, tuple(words))
