"""From text to batches: an episode or a document becomes demonstrations, context and query, as token ids.

Keys of a batch (b rows; all right-padded; each ``*_mask`` is boolean):

===========================  ===========================================================================
``ids, mask`` b t            the query; for an encoder-decoder what the decoder reads, its first token before it
``targets, answer`` b t      the answer's tokens, shifted (``core.batch.shift``)
``demos, demos_mask``        what the distiller reads, its start first: b n, or b g n with groups
``context, context_mask``    what the LLM reads in full, its start first: b n
``segment`` b t              which query a token belongs to, where a row has several
``encoder_ids, encoder_mask``  the query's input, where an encoder-decoder reads it on the encoder's side
===========================  ===========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.context.host import Host
from limbeck.context.reading import Reading
from limbeck.core.batch import Batch, next_token_batch
from limbeck.core.check import LimbeckError, require
from limbeck.data.stream import lengths_mask, pad
from limbeck.data.tasks import Episode
from limbeck.data.templates import Example, cached

SHARE = 0.8  # of a document that plays the demonstrations: MEND's beta
LONGEST = 1024  # tokens of a document: the longest that MEND's LLM can read


@dataclass(frozen=True)
class Query:
    """A query's ids, how many of them are the prompt, and what the encoder reads (None: nothing of the query)."""

    ids: list[int]
    prompt: int
    encoder: list[int] | None = None


class Collate:
    """Token ids for one host, reading and tokenizer. As a function: a list of episodes to a batch."""

    def __init__(self, tokenizer: Any, host: Host, reading: Reading) -> None:
        self.tokenizer, self.host, self.reading = cached(tokenizer), host, reading

    def __call__(self, episodes: Sequence[Episode]) -> Batch:
        """Batch of ``len(episodes)`` rows."""
        asked = [[self.query(query.input, query.output) for query in episode.queries] for episode in episodes]
        batch = several_batch(asked) if any(len(row) > 1 for row in asked) else query_batch([row[0] for row in asked])
        batch |= _grouped([self.demos(e.demos) for e in episodes])
        return batch | padded("context", [self.context(e.demos) for e in episodes])

    def demos(self, examples: Sequence[Example]) -> list[list[int]]:
        """What the distiller reads: ids of each of the ``groups``, consecutive demonstrations in each."""
        count, groups = len(examples), self.reading.groups
        require(count, "the list of demonstrations is empty; give at least one example")
        require(count >= groups, f"{count} demonstrations cannot be split into {groups} groups; give more of them")
        return [self._text(part, self.reading.budget) for part in self._parts(examples)]

    def context(self, examples: Sequence[Example]) -> list[int]:
        """What the LLM reads in full."""
        return self._text(examples, self.reading.context)

    def query(self, text: str, answer: str) -> Query:
        """The query with its answer."""
        ids, prompt = self.reading.text.query(self.tokenizer, text, answer, self.reading.limit)
        require(len(ids) > prompt, f"the answer {answer!r} has no tokens; an answer needs at least one")
        return self.split(ids, prompt)

    def split(self, ids: list[int], prompt: int) -> Query:
        """Prompt and answer on the sides where the host reads them. A decoder alone needs two tokens to predict one."""
        if not self.host.seq2seq:
            require(
                len(ids) >= 2, f"a query needs at least 2 tokens, of which the first is never predicted, but has {ids}"
            )
            return Query(ids, prompt)
        start = [self._start()]
        if self.reading.query == "encoder":
            return Query(start + ids[prompt:], 1, ids[:prompt])
        return Query(start + ids, prompt + 1)

    def opened(self, ids: Iterable[int]) -> list[int]:
        """``ids`` behind the tokens that everything starts with, if there are any."""
        return [*self.reading.start, *ids]

    def used(self, examples: Sequence[Example]) -> int:
        """How many demonstrations the distiller reads, a cut one counted."""
        reading = self.reading
        fit = (reading.text.fitting(self.tokenizer, p, reading.budget, reading.limit) for p in self._parts(examples))
        return sum(map(len, fit))

    def _parts(self, examples: Sequence[Example]) -> list[Sequence[Example]]:
        groups, count = self.reading.groups, len(examples)
        return [examples[i * count // groups : (i + 1) * count // groups] for i in range(groups)]

    def _text(self, examples: Iterable[Example], budget: int) -> list[int]:
        return self.opened(self.reading.text.demos(self.tokenizer, examples, budget, self.reading.limit))

    def _start(self) -> int:
        assert self.host.start is not None  # Host.of refuses an encoder-decoder without one
        return self.host.start


class Documents:
    """Collates documents for pre-training: the first ``share`` of each plays the demonstrations, the rest the query.

    A document is a sequence of ids; ``longest`` is how much of one both models can read.
    """

    def __init__(self, collate: Collate, distiller_positions: int | None = None, share: float = SHARE) -> None:
        require(0 < share < 1, f"share must lie between 0 and 1, but is {share}")
        self.collate, self.share, self.groups = collate, share, collate.reading.groups
        length, ahead = collate.reading.length, len(collate.reading.start)
        llm = (collate.host.positions or LONGEST + ahead) - ahead
        space = (distiller_positions or LONGEST + ahead + length) - ahead - length

        def readable(tokens: int) -> bool:
            first = math.floor(share * tokens)
            return math.ceil(first / self.groups) <= space and length * self.groups + tokens - first <= llm

        self.longest = next((n for n in range(min(LONGEST, llm), 0, -1) if readable(n)), 0)
        require(
            self.fits(range(self.longest)), "no document fits both LLM and distiller beside the vectors; lower length"
        )

    def __call__(self, documents: Sequence[Sequence[int]]) -> Batch:
        """Batch of ``len(documents)`` rows; every token of the query is a target."""
        cut = [list(map(int, document[: self.longest])) for document in documents]
        parts = [(d[: self._first(d)], d[self._first(d) :]) for d in cut]
        batch = query_batch([self.collate.split(rest, 0) for _, rest in parts])
        batch |= _grouped([self._groups(first) for first, _ in parts])
        return batch | padded("context", [self.collate.opened(first) for first, _ in parts])

    def fits(self, document: Sequence[int]) -> bool:
        """Whether both parts are long enough: a token for each group, and two for the query."""
        size = min(len(document), self.longest)
        first = math.floor(self.share * size)
        return first >= self.groups and size - first >= 2

    def tokenize(self, texts: Iterable[str], tokenizer: Any) -> tuple[list[np.ndarray], int]:
        """The documents that are long enough, as int32 ids, and how many were too short. Raises if all are."""
        found, short = [], 0
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=self.longest)["input_ids"]
            if self.fits(ids):
                found.append(np.asarray(ids, dtype=np.int32))
            else:
                short += 1
        if not found:
            raise LimbeckError(
                f"all {short} documents of the corpus are too short to be split into demonstrations and a query; "
                "give longer ones"
            )
        return found, short

    def _first(self, document: Sequence[int]) -> int:
        return math.floor(self.share * len(document))

    def _groups(self, ids: list[int]) -> list[list[int]]:
        return [self.collate.opened(map(int, part)) for part in np.array_split(ids, self.groups)]


def query_batch(queries: Sequence[Query]) -> Batch:
    """Queries as a batch: ``ids mask targets answer``, and the encoder's side where there is one."""
    ids = [query.ids for query in queries]
    keep = pad([[i >= query.prompt for i in range(len(query.ids))] for query in queries]).bool()
    batch = next_token_batch(pad(ids), lengths_mask(ids), keep)
    if queries[0].encoder is not None:
        batch |= padded("encoder_ids", [query.encoder or [] for query in queries], "encoder_mask")
    return batch


def several_batch(rows: Sequence[Sequence[Query]]) -> Batch:
    """Rows of several queries one after another, told apart by ``segment`` (1, 2 ...); for a decoder."""
    require(all(query.encoder is None for row in rows for query in row), "an encoder-decoder reads one query per row")
    ids = [[token for query in row for token in query.ids] for row in rows]
    segments = [[number for number, query in enumerate(row, 1) for _ in query.ids] for row in rows]
    keep = [[i >= max(query.prompt, 1) for query in row for i in range(len(query.ids))] for row in rows]
    batch = next_token_batch(pad(ids), lengths_mask(ids), pad(keep).bool())
    return batch | {"segment": pad(segments)}


def padded(name: str, rows: Sequence[Sequence[int]], mask: str | None = None) -> Batch:
    """Ids b n under ``name`` and their mask."""
    return {name: pad(rows), mask or f"{name}_mask": lengths_mask(rows)}


def _grouped(rows: Sequence[Sequence[Sequence[int]]]) -> Batch:
    """``demos`` b n, or b g n where there is more than one group."""
    groups = len(rows[0])
    batch = padded("demos", [group for row in rows for group in row])
    return batch if groups == 1 else {name: value.unflatten(0, (-1, groups)) for name, value in batch.items()}
