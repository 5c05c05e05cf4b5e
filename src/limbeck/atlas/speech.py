"""A fact said in a locale: CLDR's patterns and names, with the place of every fact in the text kept.

CLDR has no verbs, so a sentence of the atlas is a record or a list ("Romania: 7 Romanian lei and 23 kilograms.") in
the locale's own words, order, plural forms, punctuation and digits. Direction marks are left out and spaces are plain,
as in most text in the wild.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from babel import Locale, dates, numbers, units
from babel.core import get_global

from limbeck.atlas.facts import Clause, Fact, Node
from limbeck.atlas.names import names, parse


class Span(NamedTuple):
    """Characters ``start`` to ``end`` say ``fact``."""

    start: int
    end: int
    fact: Fact


class Piece(NamedTuple):
    """A text and where its facts stand."""

    text: str
    spans: tuple[Span, ...] = ()


class Marks(NamedTuple):
    """What ends a sentence, ends a question, follows a head, and parts two sentences."""

    stop: str = "."
    question: str = "?"
    colon: str = ": "
    space: str = " "


# CLDR has no table of sentence marks that babel carries; locales not named here use the default.
_MARKS = {
    "zh ja yue": Marks("。", "？", "：", ""),
    "hi ne bn as pa or": Marks("।"),
    "ar fa ps sd ug ckb mzn": Marks(question="؟"),
    "ur ks": Marks("۔", "؟"),
    "hy": Marks("։", "՞", "՝ "),
    "am ti": Marks("።", "?", "፦ "),
    "el": Marks(question=";"),
    "km": Marks("។"),
    "my": Marks("။"),
    "th lo": Marks(""),
    "fr": Marks(question=" ?", colon=" : "),
}
_BY_LANGUAGE = {language: marks for languages, marks in _MARKS.items() for language in languages.split()}

# The zero of each set of digits that CLDR names as some locale's default.
_ZEROS = {"arab": "٠", "arabext": "۰", "beng": "০", "deva": "०", "mymr": "၀", "tibt": "༠", "olck": "᱐", "adlm": "𞥐"}
_ZEROS |= {"cakm": "𑄶", "nkoo": "߀", "hmnp": "𞅀", "rohg": "𐴰"}

_PLAIN = {ord(space): " " for space in "\u00a0\u202f\u2009\u2007"} | dict.fromkeys(map(ord, "\u200e\u200f\u061c"))


def marks(locale: str) -> Marks:
    """The sentence marks of ``locale``."""
    return _BY_LANGUAGE.get(parse(locale).language, Marks())


@lru_cache
def _digits(locale: str) -> dict[int, str]:
    """Latin digits -> the digits of the locale's default numbering system."""
    zero = _ZEROS.get(parse(locale).default_numbering_system, "0")
    return {ord("0") + digit: chr(ord(zero) + digit) for digit in range(10)}


def plain(text: str) -> str:
    """Plain spaces, and no direction marks."""
    return re.sub(" +", " ", text.translate(_PLAIN)).strip()


def native(text: str, locale: str) -> str:
    """``text`` with the digits of the locale."""
    return text.translate(_digits(locale))


def say(node: Node, locale: str) -> Piece:
    """The node in the words of ``locale``."""
    if isinstance(node, Fact):
        text = leaf(node, locale)
        return Piece(text, (Span(0, len(text), node),))
    parts = [say(part, locale) for part in node.parts]
    return weave(_pattern(node, locale), parts)


def sentence(node: Node, locale: str, question: bool = False) -> Piece:
    """The node as a sentence: a capital first where the script has capitals, and the locale's stop."""
    piece = say(node, locale)
    mark = marks(locale).question if question else marks(locale).stop
    text = capital(piece.text, locale)
    return Piece(text if mark and text.endswith(mark) else text + mark, piece.spans)


def paragraph(sentences: Sequence[Piece], locale: str) -> Piece:
    """Sentences one after the other, parted as the locale parts them."""
    space = marks(locale).space
    return weave(space.join(map(_mark, range(len(sentences)))), sentences)


def capital(text: str, locale: str) -> str:
    """``text`` with its first letter in title case, unless that would change its length."""
    first = text[:1]
    upper = "İ" if first == "i" and parse(locale).language in ("tr", "az") else first.title()
    return upper + text[1:] if len(upper) == 1 else text


def weave(pattern: str, pieces: Sequence[Piece]) -> Piece:
    """``pattern`` with the n-th private-use character replaced by the n-th piece."""
    text, spans = "", []
    for part in re.split("([\ue000-\uf8ff])", pattern):
        piece = pieces[ord(part) - 0xE000] if "\ue000" <= part <= "\uf8ff" and len(part) == 1 else Piece(part)
        spans += [Span(span.start + len(text), span.end + len(text), span.fact) for span in piece.spans]
        text += piece.text
    return Piece(text, tuple(spans))


def _mark(number: int) -> str:
    return chr(0xE000 + number)


def _pattern(clause: Clause, locale: str) -> str:
    """The locale's pattern of the clause, its parts as private-use characters."""
    slots = [_mark(number) for number in range(len(clause.parts))]
    if clause.form == "about":
        return slots[0] + marks(locale).colon + slots[1]
    if clause.form == "aside":
        return plain(parse(locale).zone_formats["fallback"] % {"1": slots[0], "0": slots[1]})
    return plain(_list(slots, "standard" if clause.form == "and" else clause.form, parse(locale)))


def _list(parts: list[str], style: str, locale: Locale) -> str:
    """``babel.lists.format_list``, which fails where a locale's style holds only what differs from the standard one."""
    patterns = {**locale.list_patterns["standard"], **locale.list_patterns.get(style, {})}
    if len(parts) == 2:
        return patterns["2"].format(*parts)
    text = patterns["start"].format(*parts[:2])
    for part in parts[2:-1]:
        text = patterns["middle"].format(text, part)
    return patterns["end"].format(text, parts[-1])


def leaf(fact: Fact, locale: str) -> str:
    """One fact in the words and digits of the locale."""
    if fact.kind in ("territory", "language", "currency", "script"):
        return plain(names(fact.kind, locale)[fact.value[0]])
    return native(plain(_LEAVES[fact.kind](fact, parse(locale))), locale)


def _amount(fact: Fact, locale: Locale) -> str:
    value, code = fact.value
    cents = value != int(value)
    if fact.style == "name":
        return numbers.format_currency(
            value, code, locale=locale, format_type="name", currency_digits=cents, numbering_system="default"
        )
    return numbers.format_currency(value, code, locale=locale, currency_digits=cents, numbering_system="default")


def _measure(fact: Fact, locale: Locale) -> str:
    length: Literal["long", "short"] = "long" if fact.style == "long" else "short"
    value, unit = fact.value
    return units.format_unit(value, unit, length, locale=locale, numbering_system="default")


def _number(fact: Fact, locale: Locale) -> str:
    value = fact.value[0]
    if fact.style == "long" and "long" in locale.compact_decimal_formats:
        return numbers.format_compact_decimal(
            value, format_type="long", locale=locale, fraction_digits=1, numbering_system="default"
        )
    return numbers.format_decimal(value, locale=locale, numbering_system="default")


def _time(fact: Fact, locale: Locale) -> str:
    return dates.format_time(datetime.time(*fact.value), "short", locale=locale)


def _zone(fact: Fact, locale: Locale) -> str:
    meta = get_global("meta_zones")[fact.value[0]]
    return locale.meta_zones[meta]["long"]["standard"]


def _date(fact: Fact, locale: Locale) -> str:
    if fact.style == "weekday":
        return locale.days["stand-alone"]["wide"][fact.value[0]]
    if fact.style == "relative":
        return _relative(fact, locale)
    day = datetime.date(*fact.value[:3])
    if fact.style == "interval":
        return dates.format_interval(day, day + datetime.timedelta(fact.value[3]), skeleton="yMMMd", locale=locale)
    if fact.style in ("yMMMM", "yQQQQ"):
        return dates.format_skeleton(fact.style, day, locale=locale)
    return dates.format_date(day, fact.style, locale=locale)


def _relative(fact: Fact, locale: Locale) -> str:
    unit, count = fact.value
    seconds = count * dict(dates.TIMEDELTA_UNITS)[unit]
    return dates.format_timedelta(seconds, granularity="second", add_direction=True, locale=locale)


_LEAVES: dict[str, Callable[[Fact, Locale], str]] = {
    "amount": _amount,
    "number": _number,
    "time": _time,
    "zone": _zone,
    "date": _date,
    "percent": lambda fact, locale: numbers.format_percent(
        fact.value[0], format=None, locale=locale, decimal_quantization=False, numbering_system="default"
    ),
    "measure": _measure,
}
