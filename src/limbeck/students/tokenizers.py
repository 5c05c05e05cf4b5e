"""Smaller tokenizers: a fast tokenizer edited through its JSON, so that a text whose pieces were kept is cut as before.

Why that holds, per kind of tokenizer:

- Unigram: the best path through the lattice is still there, and removing candidates adds none; the price of an unknown
  character is kept too (``_unigram``).
- WordPiece: the longest match is still there, and longer ones are still absent. A word that was unknown as a whole may
  become known, because a longer prefix that led nowhere is gone; such a text does not count as covered.
- BPE: merges act inside the final pieces only, in order of rank. If every piece on the way to a kept piece is kept
  (``closure``), the same merges happen in the same order.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from limbeck.core.check import LimbeckError, one_of, require

KINDS = ("Unigram", "WordPiece", "BPE", "WordLevel")
State = dict[str, Any]


def backend(tokenizer: Any) -> Any:
    """The tokenizer's engine, of the tokenizers library. Raises ``LimbeckError`` for a tokenizer without one."""
    engine: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not hasattr(engine, "to_str"):
        raise LimbeckError(
            f"trimming needs a fast tokenizer, one with a tokenizer.json, but got {type(tokenizer).__name__}; "
            "convert it to the tokenizers library's format first"
        )
    return engine


def backend_state(tokenizer: Any) -> State:
    """The tokenizer's JSON. Raises ``LimbeckError`` if it has none, or is of a kind that is not in ``KINDS``."""
    state = json.loads(backend(tokenizer).to_str())
    one_of(state["model"]["type"], KINDS, "kind of tokenizer")
    return state


def token_ids(state: State) -> dict[str, int]:
    """Every token of the tokenizer with its id: the model's own and those added later."""
    vocab = state["model"]["vocab"]
    own = {piece: i for i, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    return own | {token["content"]: token["id"] for token in state["added_tokens"]}


def essential_ids(state: State, alphabet: bool = True) -> set[int]:
    """Ids that every trimmed tokenizer keeps: special and added tokens, the unknown token.

    With ``alphabet`` also the 256 letters of a byte-level tokenizer and the byte pieces of byte fallback: without them
    a text with a character that the corpus did not show is not encoded.
    """
    model, ids = state["model"], token_ids(state)
    found = {token["id"] for token in state["added_tokens"]}
    if model.get("unk_id") is not None:
        found.add(model["unk_id"])
    wanted = [model.get("unk_token"), *(_letters(state) if alphabet else ())]
    return found | {ids[token] for token in wanted if token in ids}


def _letters(state: State) -> list[str]:
    model = state["model"]
    letters = [f"<0x{byte:02X}>" for byte in range(256)] if model.get("byte_fallback") else []
    if model["type"] == "BPE" and '"ByteLevel"' in json.dumps([state["pre_tokenizer"], state["normalizer"]]):
        from tokenizers.pre_tokenizers import ByteLevel

        heads = {"", model.get("continuing_subword_prefix") or ""}
        tails = {"", model.get("end_of_word_suffix") or ""}
        letters += [head + letter + tail for letter in ByteLevel.alphabet() for head in heads for tail in tails]
    return letters


def closure(state: State, keep: Iterable[int]) -> set[int]:
    """``keep`` and, for BPE, every piece that arises on the way from characters to a kept piece."""
    keep, model = set(keep), state["model"]
    if model["type"] != "BPE":
        return keep
    ids = token_ids(state)
    ranks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
    affixes = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    pieces = [piece for piece, i in model["vocab"].items() if i in keep]
    return keep | {ids[part] for piece in pieces for part in derivation(piece, ranks, *affixes) if part in ids}


def derivation(piece: str, ranks: Mapping[tuple[str, str], int], prefix: str = "", suffix: str = "") -> set[str]:
    """Every symbol that BPE passes through on its way from characters to ``piece``; none if it does not arrive there.

    ``ranks`` maps a pair to its rank; ``prefix`` marks pieces inside a word, ``suffix`` those at its end.
    """
    symbols = _characters(piece, prefix, suffix)
    seen = set(symbols)
    while len(symbols) > 1:
        at = min(range(len(symbols) - 1), key=lambda i: ranks.get((symbols[i], symbols[i + 1]), len(ranks)))
        if (symbols[at], symbols[at + 1]) not in ranks:
            return set()
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1].removeprefix(prefix)]
        seen.add(symbols[at])
    return seen


def _characters(piece: str, prefix: str, suffix: str) -> list[str]:
    inside = bool(prefix) and piece.startswith(prefix)
    core = piece.removeprefix(prefix) if inside else piece
    last = bool(suffix) and core.endswith(suffix) and core != suffix
    core = core.removesuffix(suffix) if last else core
    letters = [(prefix if inside or i else "") + letter for i, letter in enumerate(core)]
    return [*letters[:-1], letters[-1] + suffix] if last else letters


def trim_tokenizer(tokenizer: Any, keep: Iterable[int], alphabet: bool = True) -> tuple[Any, list[int]]:
    """A tokenizer with the tokens ``keep`` (ids), what they need, and new ids without gaps; and its old ids in order.

    Tokens are numbered by rank of their old ids, the tokenizer model's own before those added outside of it. What is
    kept beside ``keep``: ``essential_ids`` and the ``closure`` of BPE merges. The original is not changed.
    """
    text, order, tokens = _plan(backend_state(tokenizer), {int(i) for i in keep}, alphabet)
    small = _rewrapped(tokenizer, text)
    _check_numbering(small, tokens)
    return small, order


def _plan(state: State, keep: set[int], alphabet: bool) -> tuple[str, list[int], list[str]]:
    """The JSON of the small tokenizer, its old ids in order, and its tokens; all else is freed, for it is large."""
    kept = closure(state, keep | essential_ids(state, alphabet))
    tokens = {i: token for token, i in token_ids(state).items()}
    strange = min(kept - tokens.keys(), default=None)
    require(strange is None, f"keep: {strange} is not the id of a token")
    own = set(range(len(vocab))) if isinstance(vocab := state["model"]["vocab"], list) else set(vocab.values())
    order = sorted(kept & own) + sorted(kept - own)
    return json.dumps(renumbered(state, order)), order, [tokens[i] for i in order]


def renumbered(state: State, order: Sequence[int]) -> State:
    """The JSON of the tokenizer that has the tokens ``order`` (old ids) and numbers them by their place in it."""
    new = {old: place for place, old in enumerate(order)}
    edit = {"Unigram": _unigram, "BPE": _bpe}.get(state["model"]["type"], _table)
    padding = state["padding"] and state["padding"] | {"pad_id": new[state["padding"]["pad_id"]]}
    return state | {
        "model": edit(state["model"], new),
        "added_tokens": [token | {"id": new[token["id"]]} for token in state["added_tokens"]],
        "padding": padding,
        "post_processor": _post_processor(state["post_processor"], new),
    }


def _unigram(model: State, new: Mapping[int, int]) -> State:
    # An unknown character costs the lowest score of the vocabulary less a constant. If that piece goes, the price
    # changes and with it a path or two. The unknown token's own score is never read, so it may carry the old minimum.
    lowest = min(score for _, score in model["vocab"])
    vocab = [[piece, score] for i, (piece, score) in enumerate(model["vocab"]) if i in new]
    unknown = model["unk_id"] if model["unk_id"] is None else new[model["unk_id"]]
    if unknown is not None and min(score for _, score in vocab) > lowest:
        vocab[unknown][1] = lowest
    return model | {"vocab": vocab, "unk_id": unknown}


def _table(model: State, new: Mapping[int, int]) -> State:
    vocab = {token: new[i] for token, i in model["vocab"].items() if i in new}
    return model | {"vocab": dict(sorted(vocab.items(), key=lambda item: item[1]))}


def _bpe(model: State, new: Mapping[int, int]) -> State:
    small, prefix = _table(model, new), model.get("continuing_subword_prefix") or ""
    vocab = small["vocab"]
    merges = [[a, b] for a, b in model["merges"] if a in vocab and b in vocab and a + b.removeprefix(prefix) in vocab]
    return small | {"merges": merges}


def _post_processor(part: State | None, new: Mapping[int, int]) -> State | None:
    if part is None:
        return None
    part = dict(part)
    if "processors" in part:
        part["processors"] = [_post_processor(inner, new) for inner in part["processors"]]
    if isinstance(special := part.get("special_tokens"), dict):
        part["special_tokens"] = {k: v | {"ids": [new[i] for i in v["ids"]]} for k, v in special.items()}
    for name in {"sep", "cls"} & part.keys():
        part[name] = [part[name][0], new[part[name][1]]]
    return part


def _rewrapped(tokenizer: Any, text: str) -> Any:
    """The same kind of tokenizer around another JSON, by way of a folder: so it is what a later load gives."""
    from tokenizers import Tokenizer, models

    shell = copy.copy(tokenizer)
    shell._tokenizer = Tokenizer(models.BPE())  # saved and then written over: the large one need not be saved
    with TemporaryDirectory() as folder:
        shell.save_pretrained(folder)
        Path(folder, "tokenizer.json").write_text(text, encoding="utf-8")
        small = type(tokenizer).from_pretrained(folder)
    small.name_or_path = tokenizer.name_or_path
    return small


def _check_numbering(small: Any, tokens: Sequence[str]) -> None:
    ids = small.get_vocab()
    odd = next((token for place, token in enumerate(tokens) if ids.get(token) != place), None)
    if odd is not None or len(ids) != len(tokens):
        raise LimbeckError(
            f"the trimmed {type(small).__name__} has {len(ids)} tokens where {len(tokens)} were kept, and numbers "
            f"{odd!r} {ids.get(odd or '')}; its class rebuilds the vocabulary in its own order, so load it as "
            "PreTrainedTokenizerFast and trim that"
        )
