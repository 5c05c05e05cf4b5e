"""Which neighbouring tokens stand in one phrase."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from limbeck.core.batch import Batch
from limbeck.core.check import require

Chunker = Callable[[str], Sequence[tuple[int, int]]]
"""A text -> its spans as (start, end) in characters, in order and without overlap; what lies in none counts nowhere."""

WORD = re.compile(r"\w+(?:['’.,-]\w+)*|[^\w\s]+")


def phrases(text: str, most: int = 4) -> list[tuple[int, int]]:
    """Runs of at most ``most`` words without punctuation between them: a chunker for any language with spaces.

    A chunker that knows a language's noun and verb phrases, as in the paper, may stand in its place.
    """
    spans: list[tuple[int, int]] = []
    words = 0
    for found in WORD.finditer(text):
        if not found[0][0].isalnum():
            words = 0
        elif words in (0, most):
            spans.append(found.span())
            words = 1
        else:
            spans[-1] = spans[-1][0], found.end()
            words += 1
    return spans


class Neighbours:
    """Adds ``pairs`` b t to a batch: true where a position and the next one predict two tokens of one span.

    The text is that of the supervised tokens, decoded by ``tokenizer``. A token belongs to the span that holds its
    first character that is not white space.
    """

    def __init__(self, tokenizer: Any, chunk: Chunker = phrases) -> None:
        self.tokenizer, self.chunk = tokenizer, chunk
        self._pieces: dict[int, str] = {}
        anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
        require(anchor, "the tokenizer has no token for the letter a, so pieces of text cannot be told apart")
        self._anchor = anchor[-1:]

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its new mask."""
        pairs = torch.zeros_like(batch["answer"], dtype=torch.bool)
        for row, (answer, targets) in enumerate(zip(batch["answer"].bool(), batch["targets"], strict=True)):
            places = answer.nonzero().flatten()
            spans = torch.tensor(self.spans(targets[places].tolist()), dtype=torch.int64)
            together = (spans[1:] == spans[:-1]) & (spans[1:] >= 0) & (places[1:] == places[:-1] + 1)
            pairs[row, places[:-1][together]] = True
        return batch | {"pairs": pairs}

    def spans(self, ids: Sequence[int]) -> list[int]:
        """The number of the span of every token; -1 for none."""
        pieces = [self.piece(token) for token in ids]
        bounds = self.chunk("".join(pieces))
        found, start, number = [], 0, 0
        for piece in pieces:
            place = start + len(piece) - len(piece.lstrip()) if piece.strip() else start
            while number < len(bounds) and bounds[number][1] <= place:
                number += 1
            inside = number < len(bounds) and bounds[number][0] <= place and bool(piece)
            found.append(number if inside else -1)
            start += len(piece)
        return found

    def piece(self, token: int) -> str:
        """The text of ``token`` in the middle of a text, white space and all; empty for a special token."""
        if token not in self._pieces:
            before, both = (self._decoded([*self._anchor, *more]) for more in ([], [token]))
            self._pieces[token] = both[len(before) :]
        return self._pieces[token]

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
