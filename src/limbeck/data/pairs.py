"""Supervised text for language models: conversations, prompts with completions, and running text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limbeck.core.batch import Batch, next_token_batch
from limbeck.core.check import require
from limbeck.core.track import say
from limbeck.data.chats import Chat, as_chat, is_chat
from limbeck.data.packing import Row, row, row_batches
from limbeck.data.read import field, read_rows, read_text
from limbeck.data.stream import Batches, lengths_mask, lm_batches, pad
from limbeck.data.turns import chat_rows, use_template

Located = tuple[str, dict[str, Any]]
"""Where a row stands, for messages, and the row."""


class Pair(NamedTuple):
    """Token ids of a prompt and of its completion, which alone is supervised."""

    prompt: list[int]
    completion: list[int]

    def row(self) -> Row:
        """Both in one row."""
        return row([*self.prompt, *self.completion], [False] * len(self.prompt) + [True] * len(self.completion))


def causal_batches(source: str | Path, tokenizer: Any, length: int, batch: int, seed: int = 0) -> Batches:
    """Batches for causal distillation from ``source`` (``data.read.read_rows``), whichever way it is written.

    Conversations (``data.chats``) and rows with ``prompt`` and ``completion`` give one row each, supervised on what the
    assistant says or on the completion (``read_supervised``); ``data.packing.repacked`` puts several into one. All else
    is running text with a field ``text``, packed into windows of ``length`` (``lm_batches``). Rows that are token ids
    already (``read_ids``) are taken as they are.
    """
    if has_ids(source):
        return row_batches(read_ids(source, length), batch, seed)
    if has_pairs(source):
        return row_batches(read_supervised(source, tokenizer, length), batch, seed)
    return lm_batches(read_text(source), tokenizer, length, batch, seed)


def rows_batches(
    rows: Sequence[Located], tokenizer: Any, length: int, batch: int, seed: int = 0, name: str = "data"
) -> Batches:
    """The same from rows that were read already; ``name`` stands for the source in messages."""
    if is_supervised(*rows[0]):
        return row_batches(supervised(rows, tokenizer, length, name), batch, seed)
    texts = (field(one, "text", str, where) for where, one in rows)
    return lm_batches((text for text in texts if text.strip()), tokenizer, length, batch, seed)


def has_pairs(source: str | Path) -> bool:
    """Whether the first row of ``source`` is a conversation or has a ``prompt``; a row of neither needs ``text``."""
    return is_supervised(*next(iter(read_rows(source))))


def is_supervised(where: str, first: dict[str, Any]) -> bool:
    """The same for a row that stands at ``where``."""
    found = is_chat(first) or "prompt" in first
    require(
        found or "text" in first,
        f"{where}: expected 'messages', 'conversations', 'prompt' and 'completion', or 'text', but the row has "
        f"{', '.join(map(repr, first)) or 'no fields'}",
    )
    return found


def has_ids(source: str | Path) -> bool:
    """Whether the first row of ``source`` is token ids and what of them is learned."""
    return {"ids", "keep"} <= next(iter(read_rows(source)))[1].keys()


def read_ids(source: str | Path, length: int) -> list[Row]:
    """Rows of token ids, at most ``length`` of them: ``ids``, and ``keep``, the runs [begin, end) that are learned.

    ``limbeck teach --import`` writes them; cut rows would be others than the teacher was asked about.
    """
    found = []
    for where, one in read_rows(source):
        ids, runs = field(one, "ids", list, where), field(one, "keep", list, where)
        require(
            len(ids) <= length, f"{where}: has {len(ids)} tokens, but rows are to have at most {length}; raise --length"
        )
        found.append(row(_whole(ids, f"{where}: ids"), _learned(runs, len(ids), f"{where}: keep")))
    return found


def _whole(ids: list[Any], where: str) -> list[int]:
    odd = next((value for value in ids if type(value) is not int or value < 0), None)
    require(odd is None, f"{where}: expected token ids, whole numbers from 0 on, but it holds {odd!r}")
    return ids


def _learned(runs: list[Any], size: int, where: str) -> np.ndarray:
    keep = np.zeros(size, bool)
    for run in runs:
        pair = isinstance(run, list) and len(run) == 2 and all(type(value) is int for value in run)
        require(
            pair and 0 <= run[0] <= run[1] <= size,
            f"{where}: expected runs [begin, end) within the row's {size} tokens, but it holds {run!r}",
        )
        keep[run[0] : run[1]] = True
    return keep


def read_supervised(source: str | Path, tokenizer: Any, length: int) -> list[Row]:
    """Conversations and pairs of ``source`` as rows of at most ``length`` tokens; says what had to be changed.

    Conversations go through the chat template (``data.turns``), pairs of strings stand as they are, followed by the
    end-of-text token. A conversation that is too long is cut at its end, and left out where no answer is left; a pair
    that is too long loses the beginning of its prompt, and a completion that alone exceeds ``length`` is refused.
    """
    return supervised(read_rows(source), tokenizer, length, str(source))


def supervised(rows: Iterable[Located], tokenizer: Any, length: int, source: str) -> list[Row]:
    """The same from rows that were read already; ``source`` names them in messages."""
    waiting: list[Chat | Pair] = []
    for where, one in rows:
        waiting.append(as_chat(one, where) if is_chat(one) else as_pair(one, tokenizer, length, where))
    chats = [one for one in waiting if isinstance(one, Chat)]
    if chats and (note := use_template(tokenizer)):
        say(f"{source}: {note}")
    if len(chats) < len(waiting) and getattr(tokenizer, "chat_template", None):
        say(f"{source}: prompts and completions stand as they are; the chat template is for rows of messages")
    spoken = chat_rows(chats, tokenizer)
    whole = [one.row() if isinstance(one, Pair) else next(spoken) for one in waiting]
    return _fitted(whole, length, source)


def read_pairs(source: str | Path, tokenizer: Any, length: int) -> list[Pair]:
    """The rows of ``source`` (see ``read_supervised``) as prompts and completions, at most ``length`` tokens together.

    Of a conversation the last learned turn is the completion, and all before it the prompt.
    """
    return [_last_turn(one) for one in read_supervised(source, tokenizer, length)]


def pair_batches(pairs: Sequence[Pair], batch: int, seed: int = 0) -> Batches:
    """Batches ``ids``, ``mask``, ``targets``, ``answer`` b t, padded on the right to their longest row."""
    return row_batches([pair.row() for pair in pairs], batch, seed)


def seq2seq_batches(source: str | Path, tokenizer: Any, length: int, batch: int, start: int, seed: int = 0) -> Batches:
    """Batches for an encoder-decoder from rows with ``prompt`` and ``completion``, at most ``length`` tokens each.

    The encoder reads the prompt (``encoder_ids`` and ``encoder_mask`` b s), the decoder ``start`` (the model's
    ``decoder_start_token_id``) and the completion, of which every token is a target.
    """
    pairs = []
    for where, one in read_rows(source):
        require(
            not is_chat(one), f"{where}: an encoder-decoder reads 'prompt' and 'completion' that are text, not messages"
        )
        answer = [start, *_completion(one, tokenizer, length, where)]
        pairs.append(Pair(_prompt(one, tokenizer, where)[:length], answer))

    def collate(rows: list[Pair]) -> Batch:
        asked, said = [one.prompt for one in rows], [one.completion for one in rows]
        keep = lengths_mask(said)
        keep[:, 0] = False
        read = {"encoder_ids": pad(asked), "encoder_mask": lengths_mask(asked)}
        return next_token_batch(pad(said), lengths_mask(said), keep) | read

    return Batches(pairs, collate, batch, seed)


def _last_turn(one: Row) -> Pair:
    learned = np.flatnonzero(one.keep)
    begin, end = learned[-1], int(learned[-1]) + 1
    while one.keep[begin - 1]:  # the first token is never learned
        begin -= 1
    return Pair(one.ids[:begin].tolist(), one.ids[begin:end].tolist())


def _fitted(rows: list[Row], length: int, source: str) -> list[Row]:
    """Rows cut at their end to ``length``, without those that then have nothing to predict."""
    cut = [Row(one.ids[:length], one.keep[:length]) for one in rows]
    kept = [one for one in cut if one.keep.any()]
    say_fitted(len(kept), sum(one.size > length for one in rows), len(rows) - len(kept), length, source)
    return kept


def say_fitted(kept: int, long: int, gone: int, length: int, source: str) -> None:
    """Say how many conversations were too ``long`` and how many of them are ``gone``; refuse if none is ``kept``."""
    require(kept, f"{source}: no conversation has an answer of the assistant's within {length} tokens; raise --length")
    if long:
        left = f", and {gone} of them left out, for no answer stands before the cut" if gone else ""
        which = f"{long} of {kept + gone} conversations"
        say(f"{source}: {which} are longer than {length} tokens and cut at their end{left}")


def as_pair(row: dict[str, Any], tokenizer: Any, length: int, where: str) -> Pair:
    """A row of strings as token ids, at most ``length`` together; ``where`` is its file and line."""
    prompt, completion = _prompt(row, tokenizer, where), _completion(row, tokenizer, length, where)
    if prompt[-1] == tokenizer.eos_token_id:
        prompt.pop()
    require(
        prompt, f"{where}: the prompt is empty, so the completion's first token cannot be predicted; write a prompt"
    )
    return Pair(prompt[len(completion) - length :], completion)


def _prompt(row: dict[str, Any], tokenizer: Any, where: str) -> list[int]:
    ids = list(tokenizer(field(row, "prompt", str, where))["input_ids"])
    require(ids, f"{where}: the prompt is empty, so the completion's first token cannot be predicted; write a prompt")
    return ids


def _completion(row: dict[str, Any], tokenizer: Any, length: int, where: str) -> list[int]:
    """The completion and the end of the text, short enough for at least one token to stand before them.

    A row whose ``finished`` is false has no end: whoever wrote it was cut (``data.written``).
    """
    text, end = field(row, "completion", str, where), tokenizer.eos_token_id
    require(text.strip(), f"{where}: the completion is empty, so there is nothing to learn; remove the row")
    ends = end is not None and row.get("finished") is not False
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], *([end] if ends else [])]
    require(
        len(ids) < length,
        f"{where}: the completion has {len(ids)} tokens, no room for a prompt in rows of {length}; raise --length or "
        "shorten it",
    )
    return ids
