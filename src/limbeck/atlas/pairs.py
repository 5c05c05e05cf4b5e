"""Pairs of sentences with a graded similarity, and retrieval sets, in one locale or across two.

A record says five facts: a territory, a day, an amount, a measure and a language. How many of them two records share,
0 to 5, is their similarity; a shared fact may be said in another style and at another place.
"""

from __future__ import annotations

from collections.abc import Collection
from random import Random

from limbeck.atlas.facts import Fact, Node, World, about, aside, date, joined, world
from limbeck.atlas.speech import sentence
from limbeck.core.check import require

KINDS = ("territory", "date", "amount", "measure", "language")
_STYLES = {"date": ("full", "long", "medium"), "amount": ("name", "standard"), "measure": ("long", "short")}

Record = tuple[Fact, ...]


def similarity(locale: str, n: int = 1000, seed: int = 0, other: str | None = None) -> list[dict[str, str | float]]:
    """``n`` rows ``{"sentence1", "sentence2", "score"}``, the second sentence in ``other`` (default: the same locale).

    ``score`` is the number of facts shared, 0.0 to 5.0, every grade as likely.
    """
    spoken, second = _both(locale, other), other or locale
    rows: list[dict[str, str | float]] = []
    for number in range(n):
        rng = Random(f"similarity {locale} {second} {seed} {number}")
        record, score = draw(spoken, rng), rng.randrange(len(KINDS) + 1)
        changed = change(spoken, rng, record, rng.sample(KINDS, len(KINDS) - score))
        first = tell(rng, record, locale)
        rows.append({"sentence1": first, "sentence2": tell(rng, changed, second), "score": float(score)})
    return rows


def retrieval(
    locale: str, n: int = 1000, seed: int = 0, negatives: int = 4, asked_in: str | None = None
) -> list[dict[str, str | list[str]]]:
    """``n`` rows ``{"query", "positive", "negatives"}``; the query names a territory and a day, in ``asked_in``.

    The positive is the record of that territory and day. The negatives are hard: records of the same territory on
    another day and of another territory on the same day, in turn.
    """
    _require_some(negatives)
    spoken, asked = _both(locale, asked_in), asked_in or locale
    rows: list[dict[str, str | list[str]]] = []
    for number in range(n):
        rng = Random(f"retrieval {locale} {asked} {seed} {number}")
        record = draw(spoken, rng)
        query = sentence(aside(record[0], record[1]), asked, question=True).text
        wrong = [change(spoken, rng, record, {*KINDS} - {KINDS[number % 2]}) for number in range(negatives)]
        told = [tell(rng, other, locale) for other in (record, *wrong)]
        rows.append({"query": query, "positive": told[0], "negatives": told[1:]})
    return rows


def parallel_retrieval(
    source: str, target: str, n: int = 1000, seed: int = 0, negatives: int = 4
) -> list[dict[str, str | list[str]]]:
    """``n`` rows ``{"query", "positive", "negatives"}``: a record in ``source``, the same in ``target``, near misses.

    Negative i differs from the positive in 1, 2, ... facts, all five at most.
    """
    _require_some(negatives)
    spoken = _both(source, target)
    rows: list[dict[str, str | list[str]]] = []
    for number in range(n):
        rng = Random(f"parallel retrieval {source} {target} {seed} {number}")
        record = draw(spoken, rng)
        wrong = [change(spoken, rng, record, rng.sample(KINDS, min(i + 1, len(KINDS)))) for i in range(negatives)]
        told = [tell(rng, other, target) for other in (record, *wrong)]
        rows.append({"query": tell(rng, record, source), "positive": told[0], "negatives": told[1:]})
    return rows


def draw(spoken: World, rng: Random) -> Record:
    """A record: one fact of each of ``KINDS``."""
    return tuple(_fact(spoken, rng, kind) for kind in KINDS)


def change(spoken: World, rng: Random, record: Record, kinds: Collection[str]) -> Record:
    """``record`` with its facts of ``kinds`` replaced by different ones."""
    return tuple(
        _another(spoken, rng, kind, fact) if kind in kinds else fact for kind, fact in zip(KINDS, record, strict=True)
    )


def tell(rng: Random, record: Record, locale: str) -> str:
    """``record`` as a sentence in ``locale``: its styles, the order of its parts and their pattern drawn anew."""
    place, day, *rest = (_restyled(rng, fact) for fact in record)
    parts: list[Node] = rng.sample(rest, len(rest))
    heads: list[Node] = [aside(place, day), aside(day, place), place, day]
    head = rng.randrange(len(heads))
    left = [day] if head == 2 else [place] if head == 3 else []
    return sentence(about(heads[head], joined([*left, *parts])), locale).text


def _fact(spoken: World, rng: Random, kind: str) -> Fact:
    return date(rng) if kind == "date" else spoken.draw(kind, rng)


def _another(spoken: World, rng: Random, kind: str, fact: Fact) -> Fact:
    """A fact of ``kind`` that says something else than ``fact``."""
    while (found := _fact(spoken, rng, kind)).same(fact):
        pass
    return found


def _restyled(rng: Random, fact: Fact) -> Fact:
    styles = _STYLES.get(fact.kind)
    return fact._replace(style=rng.choice(styles)) if styles else fact


def _both(locale: str, other: str | None) -> World:
    return world(locale) if other in (None, locale) else world(locale, other)


def _require_some(negatives: int) -> None:
    require(negatives >= 1, f"retrieval: expected at least one negative for each query, but got negatives={negatives}")
