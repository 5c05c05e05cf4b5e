"""How far two tokenizers agree on a text: a report before they are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from limbeck.core.check import require
from limbeck.data.align import Cut, agree, cuts
from limbeck.data.spelling import shared_events


class Survey(NamedTuple):
    """Counts over a text in two cuts, ours and theirs; shares are of ours.

    ``bytes`` and ``tokens``: how many there are, ``their_tokens`` in the other cut. ``same_bytes`` and ``same_tokens``:
    the share in chunks that are one token on either side. ``places``: the share of tokens before which both have read
    the same text. ``sayable``: the share of those that both vocabularies have an event for. ``events``: how many events
    there are. ``examples``: the commonest chunks that are no single token on both sides: text, our cut, theirs.
    """

    bytes: int
    tokens: int
    their_tokens: int
    same_bytes: float
    same_tokens: float
    places: float
    sayable: float
    events: int
    examples: list[tuple[str, str, str]]

    def rows(self) -> list[tuple[str, int | str]]:
        """Name and value of each count, for a table."""
        shares = {
            "bytes in tokens that are the same on both sides": self.same_bytes,
            "tokens that are the same on both sides": self.same_tokens,
            "tokens before which both have read the same": self.places,
            "of these, tokens that both vocabularies can say": self.sayable,
        }
        counts = {"bytes": self.bytes, "tokens, student": self.tokens, "tokens, teacher": self.their_tokens}
        return [*counts.items(), *((name, f"{share:.1%}") for name, share in shares.items()), ("events", self.events)]


def survey(texts: Iterable[str], ours: Any, theirs: Any, most: int = 8) -> Survey:
    """How the tokenizers ``ours`` and ``theirs`` cut ``texts``, with ``most`` examples of where they differ."""
    texts, events = list(texts), shared_events(ours, theirs)
    sayable = {i for event in events.ours for i in event}
    total: Counter[str] = Counter()
    odd: Counter[tuple[str, str, str]] = Counter()
    for text, mine, other in zip(texts, cuts(ours, texts), cuts(theirs, texts), strict=True):
        places = np.concatenate([[[-1, -1]], agree(mine, other)])
        _count(total, text.encode(), mine, other, places, sayable)
        for (i, j), (k, n) in pairwise(places):
            if (k - i, n - j) != (1, 1):
                piece = text.encode()[_read(mine, i) : _read(mine, k)].decode(errors="replace")
                odd[piece, _tokens(ours, mine.ids[i + 1 : k + 1]), _tokens(theirs, other.ids[j + 1 : n + 1])] += 1
    require(total["tokens"], "there is no text to survey; give at least one document")
    return Survey(
        total["bytes"],
        total["tokens"],
        total["their tokens"],
        total["same bytes"] / max(1, total["bytes"]),
        total["same tokens"] / total["tokens"],
        total["places"] / total["tokens"],
        total["sayable"] / max(1, total["places"]),
        len(events.ours),
        [example for example, _ in odd.most_common(most)],
    )


def _count(total: Counter[str], raw: bytes, mine: Cut, other: Cut, places: np.ndarray, sayable: set[int]) -> None:
    alone = (np.diff(places, axis=0) == 1).all(1)
    read = np.asarray([_read(mine, i) for i in places[:, 0]])
    total["bytes"] += len(raw)
    total["tokens"] += len(mine.ids)
    total["their tokens"] += len(other.ids)
    total["same bytes"] += int(np.diff(read)[alone].sum())
    total["same tokens"] += int(alone.sum())
    total["places"] += len(places) - 1
    total["sayable"] += sum(int(mine.ids[i + 1]) in sayable for i in places[:-1, 0])


def _read(cut: Cut, token: int) -> int:
    """Bytes of the text read after ``token``; the text begins at 2."""
    return 0 if token < 0 else max(0, int(cut.ends[token]) - 2)


def _tokens(tokenizer: Any, ids: np.ndarray) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))
