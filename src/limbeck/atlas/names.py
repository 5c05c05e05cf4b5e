"""The names of the world: CLDR's territories, languages, currencies, scripts, months, days and units in many locales.

Everything comes from the locale data inside babel (Unicode CLDR), so it needs no download and is the same everywhere.
"""

from __future__ import annotations

from functools import lru_cache

from babel import Locale, UnknownLocaleError
from babel.core import get_global
from babel.localedata import locale_identifiers

from limbeck.core.check import LimbeckError

CATEGORIES = ("territory", "language", "currency", "script", "month", "day", "unit")

# Locales with much written text, and locales with little: the split of the partition "hr_to_lr".
HIGH = tuple("en de fr es it pt nl sv da pl cs ro hu fi tr id vi ru uk el ja ko zh ar he hi".split())
LOW = tuple("is sw eu cy lv sl sq af bg ka hy az gl et".split())


@lru_cache
def locales() -> tuple[str, ...]:
    """The well-covered locales: at least 220 territories and 150 languages have a name (about 145 of them)."""
    plain = [name for name in locale_identifiers() if "_" not in name or name in ("zh_Hant", "sr_Latn")]
    return tuple(sorted(name for name in plain if _well_covered(Locale.parse(name))))


def _well_covered(locale: Locale) -> bool:
    return len([key for key in locale.territories if len(str(key)) == 2]) >= 220 and len(locale.languages) >= 150


@lru_cache
def parse(locale: str) -> Locale:
    """babel's locale object, or an error that names the locale."""
    try:
        return Locale.parse(locale)
    except (UnknownLocaleError, ValueError):
        raise LimbeckError(
            f"locale: expected a CLDR identifier such as 'ro' or 'zh_Hant', but got {locale!r}; "
            "limbeck.atlas.names.locales() lists the well-covered ones"
        ) from None


@lru_cache(maxsize=2048)
def names(category: str, locale: str) -> dict[str, str]:
    """Key -> name for every key of ``category`` that ``locale`` names itself (English names never fill a gap).

    Keys are CLDR's: ISO 3166 codes for territories, ISO 639 for languages, ISO 4217 for currencies, ISO 15924 for
    scripts, 1-12 for months, 0-6 for days (Monday first), CLDR unit names for units.
    """
    if category not in CATEGORIES:
        raise LimbeckError(f"category: expected one of {', '.join(CATEGORIES)}, but got {category!r}")
    found = _TABLES[category](parse(locale))
    return {
        str(key): text.strip() for key, text in sorted(found.items(), key=lambda kv: str(kv[0])) if _usable(key, text)
    }


def _usable(key: object, text: str) -> bool:
    """Names that say something: not the bare code, not a long description."""
    return bool(text) and text.strip().lower() != str(key).lower() and len(text) <= 40


def _units(locale: Locale) -> dict[str, str]:
    display = locale.unit_display_names
    return {unit: styles["long"] for unit, styles in display.items() if "long" in styles}


_TABLES = {
    "territory": lambda locale: {
        k: v for k, v in locale.territories.items() if len(k) == 2 and k not in ("XA", "XB", "ZZ")
    },
    "language": lambda locale: {k: v for k, v in locale.languages.items() if "_" not in k},
    "currency": lambda locale: dict(locale.currencies),
    "script": lambda locale: dict(locale.scripts),
    "month": lambda locale: dict(locale.months["stand-alone"]["wide"]),
    "day": lambda locale: dict(locale.days["stand-alone"]["wide"]),
    "unit": _units,
}


@lru_cache
def codes(system: str) -> dict[str, str]:
    """Territory (ISO 3166 alpha-2) -> its code in ``system``: alpha2, alpha3, numeric, currency or language."""
    if system == "alpha2":
        return {key: key for key in names("territory", "en")}
    if system in ("alpha3", "numeric"):
        current = {code: key for code, key in get_global("territory_aliases").items() if _is_current(code, key, system)}
        return {key[0]: code for code, key in current.items()}
    if system == "currency":
        return {key: code for key in names("territory", "en") if (code := _current_currency(key))}
    if system == "language":
        return {key: code for key in names("territory", "en") if (code := _main_language(key))}
    raise LimbeckError(f"code system: expected alpha2, alpha3, numeric, currency or language, but got {system!r}")


# ISO 3166-1 codes of territories that no longer exist, which CLDR still maps to their successors.
_WITHDRAWN = frozenset(["BUR", "DDR", "FXX", "TMP", "YMD", "ZAR", "230", "249", "278", "280", "720", "736", "886"])


def _is_current(code: str, successors: list[str], system: str) -> bool:
    shape = code.isdigit() if system == "numeric" else code.isalpha()
    return len(code) == 3 and shape and len(successors) == 1 and code not in _WITHDRAWN


def _current_currency(territory: str) -> str | None:
    rows = get_global("territory_currencies").get(territory, ())
    current = [code for code, _, end, tender in rows if end is None and tender]
    return current[0] if current else None


def _main_language(territory: str) -> str | None:
    spoken = get_global("territory_languages").get(territory, {})
    best = max(spoken.items(), key=lambda kv: kv[1]["population_percent"], default=None)
    return best[0].split("_")[0] if best else None
