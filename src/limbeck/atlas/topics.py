"""Sentences of a locale with what they speak of: a task for classifiers of text."""

from __future__ import annotations

from random import Random

from limbeck.atlas.corpora import SHAPES, asks
from limbeck.atlas.facts import world
from limbeck.atlas.speech import sentence


def topics(locale: str = "en", n: int = 1000, seed: int = 0) -> list[dict[str, str]]:
    """``n`` rows ``{"text", "label"}``; the label is one of the twelve kinds of sentence, such as ``journey``.

    Kinds are drawn evenly, and some are hard to tell apart where they say the same facts. Row i depends on the locale,
    the seed and i alone.
    """
    spoken, rows = world(locale), []
    for number in range(n):
        rng = Random(f"topics {locale} {seed} {number}")
        shape = rng.choice(SHAPES)
        node = shape(spoken, rng, rng.choice(spoken.territories))
        rows.append({"text": sentence(node, locale, asks(node)).text, "label": shape.__name__})
    return rows
