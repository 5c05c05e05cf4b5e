"""Extractive questions: a paragraph, a question, and the answer with its place.

A row is ``{"context", "question", "answer", "start"}``; ``start`` counts characters. CLDR has no question words, so
outside English a question is the subject and what is missing, in the locale's own words: CLDR's names for an unknown
currency, language, script or territory ("România: monedă necunoscută?"), or the name of the unit or currency ("România:
kilograme?"). Questions in English are sentences of our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from limbeck.atlas.facts import Fact, Node, World, about, date, joined, world
from limbeck.atlas.names import names, parse
from limbeck.atlas.speech import Span, capital, leaf, marks, paragraph, plain, sentence

ENGLISH = {
    "currency": "What is the currency of {subject}?",
    "language": "Which language do most people in {subject} speak?",
    "script": "Which script is {subject} written in?",
    "territory": "Which territory is on record for {subject}?",
    "measure": "What is on record for {subject} in {label}?",
    "amount": "How much is on record for {subject} in {label}?",
}
_UNKNOWN = {
    "currency": ("currencies", "XXX"),
    "language": ("languages", "und"),
    "script": ("scripts", "Zzzz"),
    "territory": ("territories", "ZZ"),
}


class Slot(NamedTuple):
    """What is said of ``subject``, and can be asked for."""

    subject: Fact
    answer: Fact

    @property
    def key(self) -> tuple:
        """What a question names: no two slots of a paragraph may share it."""
        asked = self.answer.value[1] if self.answer.kind in ("measure", "amount") else None
        return (self.subject.kind, self.subject.value, self.answer.kind, asked)


def questions(locale: str, n: int = 1000, seed: int = 0, asked_in: str | None = None) -> list[dict[str, str | int]]:
    """``n`` rows with contexts and answers in ``locale`` and questions in ``asked_in`` (default: the same locale)."""
    asked = asked_in or locale
    spoken = world(locale) if asked == locale else world(locale, asked)
    rngs = (Random(f"questions {locale} {asked} {seed} {number}") for number in range(n))
    return [_row(spoken, rng, locale, asked) for rng in rngs]


def _row(spoken: World, rng: Random, locale: str, asked: str) -> dict[str, str | int]:
    slots = list(_slots(spoken, rng))
    groups = [
        [slot for slot in slots if slot.subject == subject] for subject in dict.fromkeys(s.subject for s in slots)
    ]
    said: list[Node] = [about(group[0].subject, joined([slot.answer for slot in group])) for group in groups]
    context = paragraph([sentence(node, locale) for node in said], locale)
    order = [slot for group in groups for slot in group]
    slot = rng.choice([slot for slot in order if label(slot.answer, asked)])
    span = _answer_span(context.spans, groups, slot)
    answer = context.text[span.start : span.end]
    return {"context": context.text, "question": ask(slot, asked), "answer": answer, "start": span.start}


def _answer_span(spans: tuple[Span, ...], groups: list[list[Slot]], wanted: Slot) -> Span:
    """The span of the wanted slot's answer: spans stand in the order subject, answers, subject, answers ..."""
    order = [slot for group in groups for slot in (None, *group)]
    return spans[order.index(wanted)]


def _slots(spoken: World, rng: Random) -> Iterator[Slot]:
    """4 to 8 slots about 3 to 5 subjects, no two with the same question."""
    seen: set[tuple] = set()
    for place in rng.sample(spoken.territories, rng.randint(3, 5)):
        subject = Fact("territory", (place,))
        found = [_of_place(spoken, rng, subject) for _ in range(rng.randint(1, 2))]
        for slot in [*found, *([_of_other(spoken, rng, subject)] if rng.random() < 0.4 else [])]:
            if slot.key not in seen:
                seen.add(slot.key)
                yield slot


def _of_place(spoken: World, rng: Random, subject: Fact) -> Slot:
    """Something about a territory: its currency or main language (real), a measure or an amount (drawn)."""
    kind = rng.choice(("currency", "language", "measure", "amount"))
    place = subject.value[0]
    if kind == "currency" and place in spoken.money:
        return Slot(subject, Fact("currency", (spoken.money[place],)))
    if kind == "language" and place in spoken.spoken:
        return Slot(subject, Fact("language", (spoken.spoken[place][0][0],)))
    if kind == "measure" or not spoken.currencies:
        return Slot(subject, spoken.measure(rng)._replace(style="long"))
    return Slot(subject, spoken.amount(rng)._replace(style="name"))


def _of_other(spoken: World, rng: Random, place: Fact) -> Slot:
    """The script of a language (real), or the territory on record for a day (drawn)."""
    if rng.random() < 0.5 and spoken.written:
        code = rng.choice(sorted(spoken.written))
        return Slot(Fact("language", (code,)), Fact("script", (spoken.written[code],)))
    return Slot(date(rng)._replace(style="long"), place)


def label(answer: Fact, locale: str) -> str:
    """How ``locale`` names what is missing; empty where it has no name for it."""
    if answer.kind in _UNKNOWN:
        table, key = _UNKNOWN[answer.kind]
        return plain(getattr(parse(locale), table).get(key, ""))
    category = {"measure": "unit", "amount": "currency"}.get(answer.kind)
    return plain(names(category, locale).get(answer.value[1], "")) if category else ""


def ask(slot: Slot, locale: str) -> str:
    """The question that ``slot`` answers, in ``locale``."""
    missing, subject = label(slot.answer, locale), leaf(slot.subject, locale)
    if parse(locale).language == "en":
        return ENGLISH[slot.answer.kind].format(subject=subject, label=missing)
    ends = marks(locale)
    return capital(f"{subject}{ends.colon}{missing}{ends.question}", locale)
