"""Prompts with completions for models that write: from pairs, or from running text that is cut in two."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.data.pairs import Pair, has_pairs, read_pairs
from limbeck.data.read import read_text
from limbeck.data.samples import Sample, batch_of
from limbeck.data.stream import Batches, packed


def prompt_batches(
    source: str | Path | Iterable[str],
    tokenizer: Any,
    length: int,
    batch: int,
    seed: int = 0,
    completion: int | None = None,
    start: int | None = None,
) -> Batches:
    """Batches ``ids``, ``mask``, ``targets``, ``answer`` b t, supervised on the completions.

    ``source`` is a ``.jsonl`` file of ``prompt`` and ``completion`` (at most ``length`` tokens together), or running
    text (see ``read_text``; or an iterable of texts): documents are joined, cut into windows of ``length`` tokens, and
    the last ``completion`` tokens of a window (default: half), up to the first end of text, are its completion.

    With ``start``, the token that its decoder starts with, rows are made for an encoder-decoder: the encoder reads the
    prompt, the decoder the completion.
    """
    pairs = _pairs(source, tokenizer, length, length // 2 if completion is None else completion)

    def collate(pairs: list[Pair]) -> Batch:
        if start is None:
            return batch_of([Sample(*pair) for pair in pairs])
        return batch_of([Sample([start], pair.completion, pair.prompt) for pair in pairs])

    return Batches(pairs, collate, batch, seed)


def _pairs(source: str | Path | Iterable[str], tokenizer: Any, length: int, completion: int) -> list[Pair]:
    if isinstance(source, str | Path):
        if has_pairs(source):
            return read_pairs(source, tokenizer, length)
        source = read_text(source)
    require(
        0 < completion < length,
        f"rows of {length} tokens leave no room for a prompt and {completion} tokens of completion; raise --length or "
        "lower --new-tokens",
    )
    ids = packed(source, tokenizer)
    require(len(ids) >= length, f"the text has {len(ids)} tokens, fewer than one row of {length}; lower --length")
    windows = ids[: len(ids) // length * length].reshape(-1, length).tolist()
    return [Pair(window[:-completion], _first(window[-completion:], tokenizer.eos_token_id)) for window in windows]


def _first(ids: list[int], end: int | None) -> list[int]:
    """``ids`` up to the first ``end``, which stays."""
    return ids[: ids.index(end) + 1] if end in ids else ids
