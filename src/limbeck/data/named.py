"""Tokens as a server names them, and which ids they are to a student's tokenizer.

Servers name tokens in several ways: by their bytes (the chat API), by their id (vLLM's ``token_id:7``), as they stand
in the vocabulary, as the text that they spell, or as they are decoded alone, where SentencePiece loses the space in
front. Which way it is shows in the tokens of the texts themselves, whose ids are known: one way must fit them all, or
the server has another tokenizer and nothing that it says of probabilities can be used. As long as several ways fit, a
name means a token only if it is the same in all of them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from limbeck.core.check import LimbeckError, require
from limbeck.data.spelling import BYTE, spelling

Name = tuple[str, bytes | None]
"""A token's string and, where the server gives them, its bytes."""
Heard = tuple[Name, float, Sequence[tuple[Name, float]]]
"""A token of a text, its log-probability, and the likeliest tokens in its place with theirs."""
Key = str | bytes
WAYS = ("ids", "bytes", "plain", "stored", "decoded")


class Listed(NamedTuple):
    """The likeliest tokens at some positions of a text.

    ``ids`` t are the text; ``positions`` n, rising: position p predicts ``ids[p + 1]``; ``top`` n k are ids and
    ``log_p`` n k their log-probabilities, best first. Where a position has fewer than k, its last ids are its first
    again and their ``log_p`` is -inf. What is missing to 1 belongs to the tokens that are not listed.
    """

    ids: np.ndarray
    positions: np.ndarray
    top: np.ndarray
    log_p: np.ndarray


class Names:
    """What a server's names mean to ``tokenizer``, the student's.

    ``heard`` counts alternatives that were named and ``unknown`` those among them that are no one token of the
    tokenizer (half characters that all print alike, say); their probability is left to the rest.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pieces, self.special, _ = spelling(tokenizer)
        self.heard = self.unknown = 0
        self.ways = list(WAYS)
        self._tables: dict[str, dict[Key, int | None]] = {}

    def listed(self, ids: Sequence[int], heard: Sequence[Heard | None], positions: Sequence[int]) -> Listed:
        """What was heard about the text ``ids`` at ``positions``; ``heard`` has an entry per token, the first None.

        Raises ``LimbeckError`` where a token of the server's is not the student's.
        """
        self._narrow([(token, each[0]) for token, each in zip(ids, heard, strict=True) if each is not None])
        require(all(heard[p + 1] is not None for p in positions), "the server says nothing about the first token")
        found = [self._likeliest(ids[p + 1], heard[p + 1]) for p in positions]  # type: ignore[arg-type]
        width = max(map(len, found), default=1)
        top, log_p = np.zeros((len(found), width), np.int64), np.full((len(found), width), -np.inf, np.float32)
        for row, best in enumerate(found):
            top[row] = [token for token, _ in best] + [best[0][0]] * (width - len(best))
            log_p[row, : len(best)] = [value for _, value in best]
        return Listed(np.asarray(ids, np.int64), np.asarray(positions, np.int64), top, log_p)

    def spoken(self, heard: Sequence[Heard], text: str) -> list[int]:
        """The ids of tokens that a server wrote, which spell ``text``."""
        names = [each[0] for each in heard]
        found = {way: self._spell(names, way, text) for way in self.ways}
        self.ways = [way for way, ids in found.items() if ids is not None] or self.ways
        spelled = {tuple(ids) for ids in found.values() if ids is not None}
        if len(spelled) == 1:
            return list(spelled.pop())
        shown = ", ".join(repr(name[0]) for name in names[:4])
        raise LimbeckError(
            f"the server wrote the tokens {shown} ..., which are not tokens of the student that spell its text; "
            f"{_ADVICE}"
        )

    def _spell(self, names: Sequence[Name], way: str, text: str) -> list[int] | None:
        """The ids of ``names`` if they spell ``text``, but for a space in front that SentencePiece puts there."""
        ids = [self._find(name, [way]) for name in names]
        whole = [token for token in ids if token is not None]
        spelled = b"".join(self.pieces[token] or b"" for token in whole).decode(errors="replace")
        same = spelled.removeprefix(" ") == text.removeprefix(" ")
        return whole if same and len(whole) == len(names) else None

    def _narrow(self, known: Sequence[tuple[int, Name]]) -> None:
        """Keep the ways of naming that fit tokens whose ids are known."""
        odd = {
            way: [n for n, (token, name) in enumerate(known) if not self._fits(token, name, way)] for way in self.ways
        }
        left = [way for way in self.ways if not odd[way]]
        if not left:
            at = max(places[0] for places in odd.values())
            token, (said, _) = known[at]
            own = self.tokenizer.convert_ids_to_tokens(int(token))
            raise LimbeckError(f"the server's token {at + 2} is {said!r}, the student's {own!r}; {_ADVICE}")
        self.ways = left

    def _fits(self, token: int, name: Name, way: str) -> bool:
        special = self.special.get(token)
        return self._key(token, way) == _named(name, way) or (special is not None and name[0] in (special, ""))

    def _likeliest(self, token: int, heard: Heard) -> list[tuple[int, float]]:
        """Ids and log-probabilities, best first; the text's own token, of which it is known, is always there."""
        best = {int(token): float(heard[1])}
        for name, value in heard[2]:
            self.heard += 1
            found = self._find(name, self.ways)
            self.unknown += found is None
            if found is not None and found != token:
                best[found] = max(float(value), best.get(found, -np.inf))
        return sorted(best.items(), key=lambda pair: -pair[1])

    def _find(self, name: Name, ways: Sequence[str]) -> int | None:
        """The one id of that name, or None."""
        found = {self._table(way).get(_named(name, way)) for way in ways}
        token = found.pop() if len(found) == 1 else None
        return self._names_of_special.get(name[0]) if token is None else token

    @cached_property
    def _names_of_special(self) -> dict[str, int]:
        return {name: token for token, name in self.special.items()}

    def _table(self, way: str) -> dict[Key, int | None]:
        """Ids by name; None where several have the same. A byte of SentencePiece's that a letter spells too is left
        out: models do not write letters that they have as bytes.
        """
        if way not in self._tables:
            stored = self.tokenizer.convert_ids_to_tokens(range(len(self.pieces)))
            letters = {self.pieces[token] for token, name in enumerate(stored) if not BYTE.match(str(name))}
            table: dict[Key, int | None] = {}
            for token, name in enumerate(stored):
                key = self._key(token, way)
                if key is not None and not (BYTE.match(str(name)) and self.pieces[token] in letters):
                    table[key] = None if key in table else token
            self._tables[way] = table
        return self._tables[way]

    def _key(self, token: int, way: str) -> Key | None:
        """What a token is called; None for one that spells nothing."""
        piece = self.pieces[token]
        if way == "ids":
            return f"token_id:{token}"
        return None if piece is None else _CALLED[way](self.tokenizer, token, piece)


_ADVICE = "probabilities teach a student with the teacher's own tokenizer alone; text teaches any (limbeck seqkd)"
_CALLED: dict[str, Callable[[Any, int, bytes], Key]] = {
    "bytes": lambda tokenizer, token, piece: piece,
    "plain": lambda tokenizer, token, piece: piece.decode(errors="replace"),
    "stored": lambda tokenizer, token, piece: str(tokenizer.convert_ids_to_tokens(token)),
    "decoded": lambda tokenizer, token, piece: str(tokenizer.decode([token])),
}


def _named(name: Name, way: str) -> Key:
    """What a name says in a way of naming; bytes are given, written out (``bytes:\\xe2``), or those of the text."""
    text, raw = name
    if way != "bytes":
        return text
    if raw is not None or not text.startswith("bytes:"):
        return text.encode(errors="replace") if raw is None else raw
    try:
        return bytes(ast.literal_eval(f"b'{text.removeprefix('bytes:')}'"))
    except (SyntaxError, ValueError, TypeError):
        return text.encode(errors="replace")
