"""Texts and their matches, such as questions with answers or sentences with code, for models that look for them.

A match is one text of a pair; in a batch every other match is a wrong one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError, require
from limbeck.data.read import field, files, read_jsonl
from limbeck.data.stream import Batches, lengths_mask, pad

FIELDS = (
    ("query", "match"),
    ("query", "positive"),
    ("anchor", "positive"),
    ("question", "answer"),
    ("text", "code"),
    ("sentence1", "sentence2"),
)
NAME = re.compile(r"[^\W\d]\w*")


class Match(NamedTuple):
    """A text and the one that it is to find."""

    query: str
    match: str


def read_matches(path: str | Path) -> list[Match]:
    """The pairs of a ``.jsonl`` file, or of all in a folder, by the first of ``FIELDS`` that a row has both of."""
    found = []
    for file in files(path, (".jsonl",)):
        for number, row in read_jsonl(file):
            where = f"{file}:{number}"
            names = next((names for names in FIELDS if all(name in row for name in names)), None)
            if names is None:
                known = ", ".join(" and ".join(pair) for pair in FIELDS)
                raise LimbeckError(f"{where}: expected a pair of fields ({known}), but the row has {', '.join(row)}")
            found.append(Match(*(field(row, name, str, where) for name in names)))
    return found


def once(pairs: Sequence[Match]) -> list[Match]:
    """``pairs`` without those of which a text has come before: in one batch a pair would count as wrong for itself."""
    seen: tuple[set[str], set[str]] = set(), set()
    found = []
    for pair in pairs:
        if pair.query not in seen[0] and pair.match not in seen[1]:
            found.append(pair)
        for side, text in zip(seen, pair, strict=True):
            side.add(text)
    return found


def match_batches(
    pairs: Sequence[Match],
    tokenizer: Any,
    length: int,
    batch: int,
    seed: int = 0,
    rename: float = 0.0,
    shuffle: bool = True,
) -> Batches:
    """Batches ``ids``, ``mask`` b t of the queries and ``match_ids``, ``match_mask`` b s of what they are to find.

    Texts are cut at ``length`` tokens. With probability ``rename`` the names that a match says again and again are
    replaced in it (2503.03008), so that it is found by more than them.
    """
    require(0 <= rename <= 1, f"--rename {rename}: expected a probability")
    require(pairs, "there are no pairs of texts; check the data")
    names = sorted({name for pair in pairs for name in often(pair.match)}) if rename else []

    def collate(pairs: list[Match], rng: np.random.Generator) -> Batch:
        told = [renamed(p.match, names, rng) if rng.random() < rename else p.match for p in pairs]
        return _side([p.query for p in pairs]) | {f"match_{name}": value for name, value in _side(told).items()}

    def _side(texts: list[str]) -> Batch:
        ids = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
        return {"ids": pad(ids, tokenizer.pad_token_id or 0), "mask": lengths_mask(ids)}

    return Batches(list(pairs), collate, batch, seed, shuffle, draws=True)


def often(text: str) -> list[str]:
    """The names (words that begin with a letter or an underscore) that ``text`` says more than once."""
    return [name for name, count in Counter(NAME.findall(text)).items() if count > 1]


def renamed(text: str, names: Sequence[str], rng: np.random.Generator) -> str:
    """``text`` with each name that it says more than once replaced, everywhere in it, by one drawn from ``names``."""
    new = {name: names[int(rng.integers(len(names)))] for name in often(text)}
    return NAME.sub(lambda found: new.get(found[0], found[0]), text)
