"""What tokens spell: the bytes behind each id, and what two vocabularies can say in common.

A byte-level token is written in an alphabet of 256 letters, one per byte. A SentencePiece token has ``▁`` for a space
and ``<0x0A>`` for a single byte. A WordPiece token without ``##`` begins a word: it spells a space and the word, and
the word alone where no other token does (after a bracket, in Chinese). Special tokens spell nothing; two of one name,
and those that end a text, mean the same.

A tokenizer that changes a text before it cuts it (lower case, no accents) sees less than another. Spellings are
compared as both of them see them: `` The`` and `` the`` of one vocabulary may be the single ``the`` of the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from limbeck.core.check import LimbeckError, require

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>$")
SPACE = "▁"
END = "end of text"
Key = Hashable  # bytes that a token spells, or the name of a special token


class Spelling(NamedTuple):
    """The bytes of each id (None where it spells none), special tokens' names, and whether spaces are left out."""

    pieces: list[bytes | None]
    special: dict[int, str]
    spaceless: bool


class Events(NamedTuple):
    """What two vocabularies can say in common: event k is any of ``ours[k]`` and any of ``theirs[k]``, ids.

    ``sizes`` are the numbers of ids of both; those in no event are the rest. Mostly an event is one token on each side.
    """

    ours: list[list[int]]
    theirs: list[list[int]]
    sizes: tuple[int, int]


def spelling(tokenizer: Any) -> Spelling:
    """What the ids of ``tokenizer`` spell. Raises ``LimbeckError`` for a tokenizer without a tokenizer.json."""
    return _spelling(tokenizer, len(getattr(tokenizer, "added_tokens_decoder", ())))  # len(tokenizer) is slow


def same_tokens(ours: Any, theirs: Any) -> bool:
    """Whether both tokenizers give every token the same id."""
    return ours is theirs or ours.get_vocab() == theirs.get_vocab()


def shared_events(ours: Any, theirs: Any) -> Events:
    """What both tokenizers can say. Raises ``LimbeckError`` where they have fewer than two events in common."""
    sizes = len(spelling(ours).pieces), len(spelling(theirs).pieces)
    if same_tokens(ours, theirs):
        return Events([[i] for i in range(sizes[0])], [[i] for i in range(sizes[1])], sizes)
    seen = _as_both_see(ours, theirs)
    (mine, my_holder), (other, their_holder) = _names(ours, seen), _names(theirs, seen)
    groups = _Groups()
    for i, key in mine.items():
        if key in their_holder:
            groups.join(i, sizes[0] + their_holder[key])
    for i, key in other.items():
        if key in my_holder:
            groups.join(my_holder[key], sizes[0] + i)
    found = sorted(sorted(group) for group in groups.members())
    events = [([i for i in e if i < sizes[0]], [i - sizes[0] for i in e if i >= sizes[0]]) for e in found]
    require(
        len(events) > 1,
        f"the two tokenizers have {len(events)} of {sizes[0]} and {sizes[1]} tokens in common, so their next tokens "
        "cannot be compared; take a teacher whose tokens spell text as the student's do",
    )
    return Events([e[0] for e in events], [e[1] for e in events], sizes)


@lru_cache(8)
def _spelling(tokenizer: Any, added_so_far: int) -> Spelling:
    engine: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not hasattr(engine, "to_str"):
        raise LimbeckError(
            "two cuts of one text are compared for fast tokenizers, those with a tokenizer.json, but this is a "
            f"{type(tokenizer).__name__}; convert it to the tokenizers library's format first"
        )
    state = json.loads(engine.to_str())
    added = {token["id"]: token["special"] for token in state["added_tokens"]}
    read, unknown = _reader(state), _unknown(state["model"])
    pieces: list[bytes | None] = [None] * (max(tokenizer.get_vocab().values()) + 1)
    for token, i in tokenizer.get_vocab().items():
        if not added.get(i) and token != unknown:
            pieces[i] = token.encode() if i in added else read(token)
    names = {token["id"]: token["content"] for token in state["added_tokens"] if token["special"]}
    return Spelling(pieces, names, state["model"]["type"] == "WordPiece")


def _reader(state: Mapping[str, Any]) -> Callable[[str], bytes]:
    """How this kind of tokenizer writes its tokens."""
    model = state["model"]
    around = json.dumps([state["pre_tokenizer"], state["decoder"], state["normalizer"]], ensure_ascii=False)
    if '"ByteLevel"' in around:
        letters = _letters()
        return lambda token: bytes(letters[c] for c in token) if letters.keys() >= set(token) else token.encode()
    if model["type"] == "WordPiece":
        inside = model["continuing_subword_prefix"]
        return lambda token: (token.removeprefix(inside) if token.startswith(inside) else f" {token}").encode()
    space = " " if f'"{SPACE}"' in around else SPACE
    single = bool(model.get("byte_fallback")) or '"ByteFallback"' in around

    def read(token: str) -> bytes:
        byte = BYTE.match(token) if single else None
        return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, space).encode()

    return read


def _unknown(model: Mapping[str, Any]) -> str | None:
    """The token that stands for what the tokenizer cannot cut."""
    if model.get("unk_id") is not None:
        return model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")


@lru_cache(1)
def _letters() -> dict[str, int]:
    """The byte of each letter of the byte-level alphabet: printable Latin-1 is itself, the rest counts from 256."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _as_both_see(*tokenizers: Any) -> Callable[[bytes], bytes]:
    """A spelling as the normalizers of all ``tokenizers`` leave it; spaces at its ends stay."""
    normalizers = [n for t in tokenizers if (n := t.backend_tokenizer.normalizer) is not None]

    def seen(piece: bytes) -> bytes:
        try:
            text = piece.decode()
        except UnicodeDecodeError:  # a part of a character
            return piece
        core = text.strip()
        for normalizer in normalizers:
            core = normalizer.normalize_str(core).replace(SPACE, " ").strip() or core
        return text.replace(text.strip(), core, 1).encode() if core else piece

    return seen


def _names(tokenizer: Any, seen: Callable[[bytes], bytes]) -> tuple[dict[int, Key], dict[Key, int]]:
    """The key of every id, and the id that a key is looked up as."""
    spelled = spelling(tokenizer)
    keys: dict[int, Key] = {i: seen(piece) for i, piece in enumerate(spelled.pieces) if piece is not None}
    keys |= {i: ("special", name) for i, name in spelled.special.items() if name != tokenizer.unk_token}
    ends = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if ends is not None:
        keys[ends] = ("special", END)
    holder: dict[Key, int] = {}
    for i, key in keys.items():
        holder.setdefault(key, i)
    for i, key in keys.items():
        if spelled.spaceless and isinstance(key, bytes) and key.startswith(b" "):
            holder.setdefault(key[1:], i)
    return keys, holder


class _Groups:
    """Things that belong together, by pairs."""

    def __init__(self) -> None:
        self.parent: dict[int, int] = {}

    def join(self, one: int, other: int) -> None:
        """Say that the two belong together."""
        self.parent[self._root(one)] = self._root(other)

    def members(self) -> list[list[int]]:
        """All groups."""
        groups: dict[int, list[int]] = {}
        for item in self.parent:
            groups.setdefault(self._root(item), []).append(item)
        return list(groups.values())

    def _root(self, item: int) -> int:
        while self.parent.setdefault(item, item) != item:
            self.parent[item] = item = self.parent[self.parent[item]]
        return item
