"""Conversations in two cuts: each side's chat template lays the same messages out in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from limbeck.core.check import LimbeckError
from limbeck.data.align import UNKNOWN, Cut, Span, byte_ends
from limbeck.data.chats import Chat
from limbeck.data.packing import Row
from limbeck.data.turns import Spoken, encoded, spoken


def chat_cuts(chat: Chat, ours: Any, theirs: Any) -> tuple[Cut, Cut]:
    """A conversation as both sides lay it out and cut it. What the assistant says is what both have.

    A turn in which a template writes something else than the message says is learned, but not compared.
    """
    said = [spoken(chat, tokenizer) for tokenizer in (ours, theirs)]
    learned = [one for one, taught in zip(chat.messages, chat.taught, strict=True) if taught]
    answers = [str(one.get("content") or "").strip() for one in learned]
    found = [_found(each, answers, tokenizer) for each, tokenizer in zip(said, (ours, theirs), strict=True)]
    cuts = []
    for tokenizer, each, parts in zip((ours, theirs), said, found, strict=True):
        both = [part if None not in twin else None for part, twin in zip(parts, zip(*found, strict=True), strict=True)]
        shared = both if len(both) == len(each.turns) else [None] * len(each.turns)
        cuts.append(laid_out(tokenizer, each.text, each.turns, shared, next(encoded([each], tokenizer))))
    return cuts[0], cuts[1]


def laid_out(
    tokenizer: Any, text: str, turns: Sequence[Span], shared: Sequence[Span | None], row: Row | None = None
) -> Cut:
    """``text``, laid out by this side's template, as ``tokenizer`` cuts it; ``row`` may know better what is predicted.

    ``turns`` are the characters that are to be predicted, ``shared`` those in each turn that both sides have, in the
    same order, such as an answer without what its template puts around it; None where there are none. What follows a
    shared part in its turn ends it: the same mark on both sides, whatever its tokens are.
    """
    said = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, spans = said["input_ids"], said["offset_mapping"]
    read, at = byte_ends(tokenizer, text, ids, spans), _bytes(text)
    ends, keep, size = np.full(len(ids), UNKNOWN, np.int64), np.zeros(len(ids), bool), 0
    for (begin, end), part in zip(turns, shared, strict=True):
        keep |= (read > at[begin]) & (read <= at[end])
        if part is None:
            continue
        first, last = part
        inner = (read > at[first]) & (read <= at[last])
        ends[inner] = read[inner] - at[first] + size + 2
        ends[read == at[first]] = size + 2
        if end > last:  # by the first token that is through: an empty piece may open what follows
            ends[np.flatnonzero(read == at[end])[:1]] = size + at[last] - at[first] + 3
        size += at[last] - at[first] + 3
    if row is not None and row.ids.tolist() != list(ids):
        raise LimbeckError("the chat template's text is cut in two ways by one tokenizer; this is a fault of limbeck")
    return Cut(np.asarray(ids, np.int32), ends, keep if row is None else row.keep, size)


def _found(said: Spoken, answers: Sequence[str], tokenizer: Any) -> list[Span | None]:
    """The characters of each answer in its turn; None where they are not there as they are."""
    if len(said.turns) != len(answers):
        return [None] * len(answers)
    return [_place(answer, said.text, *turn, tokenizer) for answer, turn in zip(answers, said.turns, strict=True)]


def _place(answer: str, text: str, begin: int, end: int, tokenizer: Any) -> Span | None:
    """Where ``answer`` stands in a turn: before the mark that ends it, which may hold the same letters."""
    turn = text[begin:end].rstrip()
    mark = max((m for m in tokenizer.all_special_tokens if m and turn.endswith(m)), key=len, default="")
    turn = turn.removesuffix(mark).rstrip()
    if not answer or not (turn.endswith(answer) or text.count(answer, begin, end) == 1):
        return None
    at = begin + len(turn) - len(answer) if turn.endswith(answer) else text.find(answer, begin, end)
    return at, at + len(answer)


def _bytes(text: str) -> list[int]:
    """Where each character of ``text`` begins, and where the last ends, in bytes."""
    return [0, *np.cumsum([len(character.encode()) for character in text]).tolist()]
