"""Sentences with their entities marked: words and BIO tags.

A row is ``{"words": [...], "tags": [...]}``, as CoNLL files hold it. Words are split at spaces, punctuation and the
ends of entities; a script written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) is split into
characters with their marks.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from limbeck.atlas.corpora import document_pieces, pieces
from limbeck.atlas.speech import Piece

KINDS = (
    "territory",
    "language",
    "currency",
    "script",
    "amount",
    "measure",
    "number",
    "percent",
    "date",
    "time",
    "zone",
)
TAGS = ["O", *(f"{place}-{kind}" for kind in KINDS for place in "BI")]

_UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}


def entities(locale: str, n: int = 1000, seed: int = 0) -> list[dict[str, list[str]]]:
    """``n`` sentences in ``locale`` as words and tags (from ``TAGS``)."""
    return [tagged(piece) for piece in pieces(locale, n, seed)]


def entity_documents(locale: str, n: int = 100, seed: int = 0) -> list[dict[str, list[str]]]:
    """``n`` paragraphs in ``locale`` as words and tags."""
    return [tagged(piece) for piece in document_pieces(locale, n, seed)]


def tagged(piece: Piece) -> dict[str, list[str]]:
    """The words of ``piece`` and the tag of each."""
    found: list[str] = []
    tags: list[str] = []
    end = 0
    for span in piece.spans:
        outside, inside = words(piece.text[end : span.start]), words(piece.text[span.start : span.end])
        found += outside + inside
        tags += ["O"] * len(outside) + [f"{'I' if i else 'B'}-{span.fact.kind}" for i in range(len(inside))]
        end = span.end
    rest = words(piece.text[end:])
    return {"words": found + rest, "tags": tags + ["O"] * len(rest)}


def words(text: str) -> list[str]:
    """The words of ``text``; every mark of punctuation that does not stand inside a word or number is a word."""
    found: list[str] = []
    open_word = False
    for at, char in enumerate(text):
        joins = open_word and (_is_mark(char) or (_is_letter(char) and not _alone(text[at - 1])) or _inside(text, at))
        if joins and not _alone(char):
            found[-1] += char
        elif not char.isspace():
            found.append(char)
        open_word = not char.isspace() and (joins or _is_letter(char))
    return found


@lru_cache(maxsize=65536)
def _is_letter(char: str) -> bool:
    return unicodedata.category(char)[0] in "LN"


@lru_cache(maxsize=65536)
def _is_mark(char: str) -> bool:
    """A mark that belongs to the letter before it, or an invisible joiner."""
    return unicodedata.category(char)[0] == "M" or unicodedata.category(char) == "Cf"


@lru_cache(maxsize=65536)
def _alone(char: str) -> bool:
    """A letter of a script that puts no spaces between words."""
    return _is_letter(char) and unicodedata.name(char, "").split(" ")[0] in _UNSPACED


def _inside(text: str, at: int) -> bool:
    """A point between two digits, or an apostrophe or hyphen between two letters."""
    if not 0 < at < len(text) - 1:
        return False
    before, char, after = text[at - 1], text[at], text[at + 1]
    if char in ".,٫٬":
        return before.isdigit() and after.isdigit()
    return char in "'’ʼ-·" and before.isalpha() and after.isalpha()
