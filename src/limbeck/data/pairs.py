"""Supervised text for causal models: prompts with completions, or running text; the stream is made for either."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from limbeck.core.batch import Batch, next_token_batch
from limbeck.core.check import LimbeckError, require
from limbeck.data.read import field, read_jsonl, read_text
from limbeck.data.stream import Batches, lengths_mask, lm_batches, pad


class Pair(NamedTuple):
    """Token ids of a prompt and of its completion, which alone is supervised."""

    prompt: list[int]
    completion: list[int]


def causal_batches(source: str | Path, tokenizer: Any, length: int, batch: int, seed: int = 0) -> Batches:
    """Batches for causal distillation from ``source``, whichever way it is written.

    A ``.jsonl`` file whose rows have ``prompt`` and ``completion`` gives one row per pair, supervised on the completion
    and its end-of-text token; everything else is running text (``read_text``), packed into windows of ``length``.
    """
    if has_pairs(source):
        return pair_batches(read_pairs(source, tokenizer, length), batch, seed)
    return lm_batches(read_text(source), tokenizer, length, batch, seed)


def has_pairs(source: str | Path) -> bool:
    """Whether ``source`` is a ``.jsonl`` file whose first row has a ``prompt``."""
    path = Path(source)
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    return "prompt" in next(iter(read_jsonl(path)))[1]


def read_pairs(source: str | Path, tokenizer: Any, length: int) -> list[Pair]:
    """The pairs of a ``.jsonl`` file as token ids, at most ``length`` together.

    A pair that is too long loses the beginning of its prompt; a completion that alone exceeds ``length`` is refused.
    """
    pairs = []
    for number, row in read_jsonl(source):
        where = f"{source}:{number}"
        pairs.append(_pair(row, tokenizer, length, where))
    return pairs


def pair_batches(pairs: list[Pair], batch: int, seed: int = 0) -> Batches:
    """Batches ``ids``, ``mask``, ``targets``, ``answer`` b t, padded on the right to their longest row."""

    def collate(rows: list[Pair]) -> Batch:
        whole = [row.prompt + row.completion for row in rows]
        mask = lengths_mask(whole)
        keep = mask & ~lengths_mask([row.prompt for row in rows], length=mask.shape[1])
        return next_token_batch(pad(whole), mask, keep)

    return Batches(pairs, collate, batch, seed)


def _pair(row: dict[str, Any], tokenizer: Any, length: int, where: str) -> Pair:
    end = tokenizer.eos_token_id
    prompt = list(tokenizer(field(row, "prompt", str, where))["input_ids"])
    if prompt and prompt[-1] == end:
        prompt.pop()
    text = field(row, "completion", str, where)
    require(text.strip(), f"{where}: the completion is empty, so there is nothing to learn; remove the row")
    completion = [*tokenizer(text, add_special_tokens=False)["input_ids"], *([] if end is None else [end])]
    room = length - len(completion)
    if room < 1:
        raise LimbeckError(
            f"{where}: the completion has {len(completion)} tokens, no room for a prompt in rows of {length}; "
            "raise --length or shorten it"
        )
    require(
        prompt, f"{where}: the prompt is empty, so the completion's first token cannot be predicted; write a prompt"
    )
    return Pair(prompt[-room:], completion)
