"""Text of a locale, and the same text in two locales.

Sentences are records, lists and choices in the locale's own patterns (see ``speech``). They depend on the locale and
the seed alone, a longer list begins with the shorter one, and no sentence comes twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from random import Random

from limbeck.atlas.facts import Clause, Fact, Node, World, about, aside, joined, world
from limbeck.atlas.speech import Piece, paragraph, sentence
from limbeck.core.check import LimbeckError

Shape = Callable[[World, Random, str], Node]


def sentences(locale: str, n: int = 1000, seed: int = 0) -> list[str]:
    """``n`` different sentences in ``locale``."""
    return [piece.text for piece in pieces(locale, n, seed)]


def pieces(locale: str, n: int = 1000, seed: int = 0) -> list[Piece]:
    """``n`` different sentences in ``locale`` with the place of every fact."""
    drawn = (sentence(node, locale, asks(node)) for node in nodes(world(locale), f"sentences {locale} {seed}"))
    return list(islice(_different(drawn), n))


def documents(locale: str, n: int = 100, seed: int = 0, length: tuple[int, int] = (3, 8)) -> list[str]:
    """``n`` paragraphs in ``locale``, each ``length`` sentences (least, most) about one territory."""
    return [piece.text for piece in document_pieces(locale, n, seed, length)]


def document_pieces(locale: str, n: int, seed: int = 0, length: tuple[int, int] = (3, 8)) -> list[Piece]:
    """``documents`` with the place of every fact."""
    if not 1 <= length[0] <= length[1]:
        raise LimbeckError(f"documents: expected length=(least, most) with 1 <= least <= most, but got {length}")
    spoken = world(locale)
    found = []
    for number in range(n):
        rng = Random(f"documents {locale} {seed} {number}")
        topic = rng.choice(spoken.territories)
        said = [shape(spoken, rng, topic) for shape in _some(rng, rng.randint(*length))]
        found.append(paragraph([sentence(node, locale, asks(node)) for node in said], locale))
    return found


def parallel(source: str, target: str, n: int = 1000, seed: int = 0) -> list[tuple[str, str]]:
    """``n`` sentences in ``source``, each with the same facts in ``target``; only what both locales name is said."""
    both = nodes(world(source, target), f"parallel {source} {target} {seed}")
    pairs = ((sentence(node, source, asks(node)), sentence(node, target, asks(node))) for node in both)
    different = _different(pairs, key=lambda pair: pair[0].text)
    return [(first.text, second.text) for first, second in islice(different, n)]


def nodes(spoken: World, seed: str) -> Iterator[Node]:
    """Sentences without a language, without end; number i depends on ``seed`` and i alone."""
    for number in count():
        rng = Random(f"{seed} {number}")
        topic = rng.choice(spoken.territories)
        yield rng.choice(SHAPES)(spoken, rng, topic)


def asks(node: Node) -> bool:
    """Whether the sentence is a question: a choice is."""
    return isinstance(node, Clause) and node.form == "or"


def _different(items: Iterator, key: Callable = lambda piece: piece.text) -> Iterator:
    """The items whose key was not seen; gives up, with an error, when nothing new comes any more."""
    seen: set[str] = set()
    misses = 0
    for item in items:
        if key(item) not in seen:
            seen.add(key(item))
            misses = 0
            yield item
        elif (misses := misses + 1) > 1000:
            raise LimbeckError(f"atlas: only {len(seen)} different sentences can be said here; ask for fewer")


def _some(rng: Random, number: int) -> list[Shape]:
    """``number`` shapes, different ones as long as there are."""
    return (rng.sample(SHAPES, len(SHAPES)) * (1 + number // len(SHAPES)))[:number]


def _place(topic: str) -> Fact:
    return Fact("territory", (topic,))


def languages(spoken: World, rng: Random, topic: str) -> Node:
    """A territory and its languages with their shares (real)."""
    found = spoken.spoken.get(topic, [])[: rng.randint(1, 4)]
    parts: list[Node] = [aside(Fact("language", (code,)), Fact("percent", (share,))) for code, share in found]
    return about(_place(topic), joined(parts or [spoken.language(rng)]))


def money(spoken: World, rng: Random, topic: str) -> Node:
    """A territory and its currency (real), or an amount of it."""
    code = spoken.money.get(topic)
    if code is None or rng.random() < 0.5:
        return about(_place(topic), spoken.amount(rng, code))
    return about(_place(topic), Fact("currency", (code,)))


def clock(spoken: World, rng: Random, topic: str) -> Node:
    """The time in a territory, with its zone (real)."""
    zones = spoken.clocks.get(topic)
    time = spoken.draw("time", rng)
    return about(_place(topic), aside(time, Fact("zone", (rng.choice(zones),))) if zones else time)


def writing(spoken: World, rng: Random, topic: str) -> Node:
    """Languages and their scripts (real)."""
    if not spoken.written:
        return languages(spoken, rng, topic)
    chosen = rng.sample(sorted(spoken.written), rng.randint(1, 3))
    parts: list[Node] = [aside(Fact("language", (code,)), Fact("script", (spoken.written[code],))) for code in chosen]
    return joined(parts)


def varieties(spoken: World, rng: Random, topic: str) -> Node:
    """A language as some territories speak it."""
    places = spoken.places(rng, rng.randint(1, 3), topic)
    code = spoken.spoken.get(topic, [(spoken.language(rng).value[0], 1.0)])[0][0]
    return joined([aside(Fact("language", (code,)), place) for place in places])


def journey(spoken: World, rng: Random, topic: str) -> Node:
    """Some days in some territories."""
    when = spoken.draw(rng.choice(("interval", "relative", "month", "date")), rng)
    return about(when, joined(list(spoken.places(rng, rng.randint(1, 4), topic))))


def record(spoken: World, rng: Random, topic: str) -> Node:
    """What was measured or paid in a territory on a day."""
    parts = [spoken.draw(rng.choice(("measure", "amount", "number")), rng) for _ in range(rng.randint(1, 3))]
    day = spoken.draw(rng.choice(("date", "date", "month", "relative")), rng)
    return about(aside(_place(topic), day), joined(list(parts)))


def size(spoken: World, rng: Random, topic: str) -> Node:
    """Two or three measures of one thing."""
    units = rng.sample(spoken.units, min(len(spoken.units), rng.randint(2, 3)))
    return about(_place(topic), joined([spoken.measure(rng, unit) for unit in units] or [spoken.measure(rng)], "unit"))


def trade(spoken: World, rng: Random, topic: str) -> Node:
    """What some territories paid on a day."""
    places = spoken.places(rng, rng.randint(1, 3), topic)
    parts: list[Node] = [aside(place, spoken.amount(rng, spoken.money.get(place.value[0]))) for place in places]
    return about(spoken.draw(rng.choice(("date", "month")), rng), joined(parts))


def share(spoken: World, rng: Random, topic: str) -> Node:
    """The shares of some languages at a time, drawn."""
    codes = rng.sample(spoken.languages, rng.randint(1, 3))
    parts: list[Node] = [aside(Fact("language", (code,)), spoken.draw("percent", rng)) for code in codes]
    return about(spoken.draw(rng.choice(("month", "date")), rng), joined(parts))


def week(spoken: World, rng: Random, topic: str) -> Node:
    """Days of the week with a time, in a territory."""
    days = rng.sample(range(7), rng.randint(1, 3))
    parts: list[Node] = [aside(Fact("date", (day,), "weekday"), spoken.draw("time", rng)) for day in sorted(days)]
    return about(_place(topic), joined(parts))


def choice(spoken: World, rng: Random, topic: str) -> Node:
    """One of some territories, languages, dates or measures?"""
    kind = rng.choice(("territory", "language", "date", "measure", "amount", "weekday", "month"))
    return joined([spoken.draw(kind, rng) for _ in range(rng.randint(2, 3))], "or")


SHAPES: list[Shape] = [languages, money, clock, writing, varieties, journey, record, size, trade, share, week, choice]
