"""Facts without a language: what the atlas's texts say, before any locale says it.

A ``Fact`` is a leaf (a territory, an amount, a date ...), a ``Clause`` holds facts together. ``World`` draws them from
what CLDR knows. Which languages a territory speaks and by how many, its currency, its time zones and the script of a
language are real; amounts, measures, dates and records are drawn at random and say nothing about the world.
"""

from __future__ import annotations

import datetime
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

from babel.core import get_global
from babel.units import format_unit

from limbeck.atlas.names import names, parse

UNITS = (
    "mass-kilogram",
    "mass-gram",
    "length-kilometer",
    "length-meter",
    "length-centimeter",
    "length-millimeter",
    "volume-liter",
    "volume-milliliter",
    "area-square-kilometer",
    "area-square-meter",
    "duration-day",
    "duration-hour",
    "duration-minute",
    "duration-week",
    "duration-month",
    "duration-year",
    "duration-second",
    "temperature-celsius",
    "speed-kilometer-per-hour",
    "energy-kilocalorie",
    "power-watt",
    "power-kilowatt",
    "digital-megabyte",
    "digital-gigabyte",
    "angle-degree",
    "pressure-hectopascal",
)
RELATIVE = {"minute": 50, "hour": 20, "day": 5, "week": 3, "month": 9, "year": 40}


class Fact(NamedTuple):
    """A leaf: its ``kind`` (the entity label), its ``value`` (codes and numbers), and the ``style`` of saying it."""

    kind: str
    value: tuple[Any, ...]
    style: str = ""

    def same(self, other: Fact) -> bool:
        """Whether both say the same, in whatever style."""
        return (self.kind, self.value) == (other.kind, other.value)


class Clause(NamedTuple):
    """Facts held together: ``and``, ``or``, ``unit`` (lists), ``about`` (head: body), ``aside`` (main (extra))."""

    form: str
    parts: tuple[Node, ...]


Node = Fact | Clause


def about(head: Node, body: Node) -> Clause:
    """``head: body``."""
    return Clause("about", (head, body))


def aside(main: Node, extra: Node) -> Clause:
    """``main (extra)``."""
    return Clause("aside", (main, extra))


def joined(parts: list[Node], form: str = "and") -> Node:
    """The parts as a list of the locale (``and``, ``or`` or ``unit``); one part stands alone."""
    return parts[0] if len(parts) == 1 else Clause(form, tuple(parts))


@lru_cache(maxsize=256)
def world(*locales: str) -> World:
    """The world that all of ``locales`` can speak of."""
    return World(*locales)


class World:
    """The keys that each of ``locales`` names, and random facts made of them."""

    def __init__(self, *locales: str) -> None:
        self.territories = _common("territory", locales)
        self.languages = _common("language", locales)
        self.currencies = _common("currency", locales)
        self.scripts = _common("script", locales)
        self.units = [unit for unit in UNITS if all(_speaks_unit(unit, locale) for locale in locales)]
        self.zones = [zone for zone in sorted(get_global("meta_zones")) if all(_zone(zone, name) for name in locales)]
        self.spoken = _spoken(set(self.territories), set(self.languages))
        self.money = _money(set(self.territories), set(self.currencies))
        self.clocks = _clocks(set(self.territories), set(self.zones))
        self.written = _written(set(self.languages), set(self.scripts))

    def territory(self, rng: Random) -> Fact:
        """Any territory."""
        return Fact("territory", (rng.choice(self.territories),))

    def places(self, rng: Random, number: int, first: str) -> list[Fact]:
        """``number`` different territories, ``first`` among them."""
        others = rng.sample([code for code in self.territories if code != first], number - 1)
        return [Fact("territory", (code,)) for code in rng.sample([first, *others], number)]

    def language(self, rng: Random) -> Fact:
        """Any language."""
        return Fact("language", (rng.choice(self.languages),))

    def zone(self, rng: Random) -> Fact:
        """A time zone."""
        return Fact("zone", (rng.choice(self.zones),))

    def amount(self, rng: Random, currency: str | None = None) -> Fact:
        """An amount of money, by name or by symbol, mostly in a currency in use; a plain number if none has a name."""
        in_use = list(self.money.values()) if rng.random() < 0.8 else self.currencies
        if not in_use:
            return self.draw("number", rng)
        code = currency or rng.choice(in_use)
        value = quantity(rng) if rng.random() < 0.7 else quantity(rng) + rng.randrange(100) / 100
        return Fact("amount", (value, code), rng.choice(("name", "name", "standard")))

    def measure(self, rng: Random, unit: str | None = None) -> Fact:
        """A number of units, in long or short form; a plain number if no unit has a name."""
        if not self.units:
            return self.draw("number", rng)
        value: float = quantity(rng, 3) if rng.random() < 0.8 else rng.randrange(1, 1000) / 10
        return Fact("measure", (value, unit or rng.choice(self.units)), rng.choice(("long", "long", "short")))

    def draw(self, kind: str, rng: Random) -> Fact:
        """A fact of any kind."""
        return _DRAW[kind](rng) if kind in _DRAW else getattr(self, kind)(rng)


def quantity(rng: Random, digits: int = 5) -> int:
    """A positive whole number of 1 to ``digits`` digits, every length as likely."""
    return rng.randrange(1, 10 ** rng.randint(1, digits))


def date(rng: Random) -> Fact:
    """A day between 1950 and 2035, from its full to its short form."""
    day = datetime.date(1950, 1, 1) + datetime.timedelta(rng.randrange(31000))
    return Fact("date", (day.year, day.month, day.day), rng.choice(("full", "long", "long", "medium", "short")))


def _month(rng: Random) -> Fact:
    return Fact("date", (rng.randrange(1950, 2036), rng.randint(1, 12), 1), rng.choice(("yMMMM", "yMMMM", "yQQQQ")))


def _interval(rng: Random) -> Fact:
    return Fact("date", (*date(rng).value, rng.randrange(2, 400)), "interval")


def _relative(rng: Random) -> Fact:
    unit = rng.choice(list(RELATIVE))
    return Fact("date", (unit, rng.choice((-1, 1)) * rng.randint(2, RELATIVE[unit])), "relative")


_DRAW = {
    "date": date,
    "month": _month,
    "interval": _interval,
    "relative": _relative,
    "weekday": lambda rng: Fact("date", (rng.randrange(7),), "weekday"),
    "time": lambda rng: Fact("time", (rng.randrange(24), rng.randrange(60))),
    "percent": lambda rng: Fact("percent", (rng.randrange(1, 1000) / 1000,)),
    "number": lambda rng: Fact("number", (quantity(rng, 3) * 10 ** rng.randint(3, 8),), rng.choice(("long", "full"))),
}


def _common(category: str, locales: tuple[str, ...]) -> list[str]:
    hidden = {"XXX", "XTS", "und", "mul", "mis", "zxx", "Zzzz", "Zyyy", "Zinh", "Zxxx", "ZZ", "EU", "EZ", "QO", "UN"}
    found = set.intersection(*(set(names(category, locale)) for locale in locales))
    return sorted(found - hidden)


def _speaks_unit(unit: str, locale: str) -> bool:
    return unit not in (format_unit(3, unit, "long", locale=parse(locale)) or unit)


def _zone(zone: str, locale: str) -> bool:
    return "standard" in parse(locale).meta_zones.get(_meta(zone), {}).get("long", {})


def _meta(zone: str) -> str:
    return get_global("meta_zones").get(zone, "")


def _spoken(places: set[str], known: set[str]) -> dict[str, list[tuple[str, float]]]:
    """Territory -> its languages and the share of people who speak each, most spoken first."""
    table = {}
    for place, spoken in sorted(get_global("territory_languages").items()):
        share: dict[str, float] = {}
        for tag, info in spoken.items():  # zh_Hant counts as zh
            code = tag.split("_")[0]
            share[code] = max(share.get(code, 0), info["population_percent"] / 100)
        found = [(code, part) for code, part in share.items() if code in known and part > 0]
        if place in places and found:
            table[place] = sorted(found, key=lambda pair: (-pair[1], pair[0]))[:5]
    return table


def _money(places: set[str], known: set[str]) -> dict[str, str]:
    """Territory -> the currency in use."""
    table = {}
    for place, history in sorted(get_global("territory_currencies").items()):
        current = [code for code, _, end, tender in history if end is None and tender and code in known]
        if place in places and current:
            table[place] = current[0]
    return table


def _clocks(places: set[str], known: set[str]) -> dict[str, list[str]]:
    """Territory -> its time zones, as far as they have a name."""
    zones = get_global("zone_territories")
    table: dict[str, list[str]] = {}
    for zone in sorted(known):
        if (place := zones.get(zone)) in places:
            table.setdefault(place, []).append(zone)
    return table


def _written(known: set[str], scripts: set[str]) -> dict[str, str]:
    """Language -> the script it is most likely written in."""
    likely = {code: tag.split("_") for code, tag in sorted(get_global("likely_subtags").items()) if code in known}
    return {code: tag[1] for code, tag in likely.items() if len(tag) > 2 and tag[1] in scripts}
