"""What a distiller and its LLM read, and how much of it: layout, lengths and budgets, saved with the distiller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from limbeck.core.check import one_of, require
from limbeck.data.templates import LAYOUTS, Layout
from limbeck.data.templates import layout as layout_named

LIMIT, BUDGET, CONTEXT = 256, 643, 767  # MEND's released code at 1,024 positions and 100 vectors


@dataclass(frozen=True)
class Reading:
    """How demonstrations and queries become token ids, so that using a distiller repeats how it was trained."""

    length: int = 100
    """Vectors per group of demonstrations."""
    groups: int = 1
    """Groups that the demonstrations are split into; each is read alone and gives ``length`` vectors."""
    layout: str = "mend"
    """Name of the text layout, one of ``data.templates.LAYOUTS``."""
    channel: bool = False
    """Input and output change places, to score p(input | output)."""
    limit: int = LIMIT
    """Tokens per example."""
    budget: int = BUDGET
    """Tokens of demonstrations that the distiller reads, per group."""
    context: int = CONTEXT
    """Tokens of demonstrations that the LLM reads where it is given them as text."""
    enter: Literal["embeddings", "states"] = "embeddings"
    """Where vectors enter an encoder-decoder: as the encoder's inputs, or in place of its output states."""
    query: Literal["decoder", "encoder"] = "decoder"
    """Which side of an encoder-decoder reads a query's input."""
    start: tuple[int, ...] = ()
    """Tokens that open whatever LLM and distiller read (``context.start``); no length above counts them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", tuple(self.start))  # JSON has lists

    @property
    def vectors(self) -> int:
        """Vectors in all."""
        return self.length * self.groups

    @property
    def text(self) -> Layout:
        """The text layout itself."""
        return layout_named(self.layout, self.channel)


def plan_reading(
    llm_positions: int | None,
    distiller_positions: int | None,
    length: int = 100,
    groups: int = 1,
    limit: int | None = None,
    budget: int | None = None,
    context: int | None = None,
    layout: str = "mend",
    channel: bool = False,
    enter: Literal["embeddings", "states"] = "embeddings",
    query: Literal["decoder", "encoder"] = "decoder",
    start: Sequence[int] = (),
) -> Reading:
    """A reading that both models can read; a length that is None becomes the paper's, or as much as there is room for.

    ``llm_positions`` and ``distiller_positions``: tokens that each can read, None for no limit; ``start`` takes some.
    """
    require(length >= 1 and groups >= 1, f"length and groups must be at least 1, but are {length} and {groups}")
    one_of(layout, LAYOUTS, "layout")
    require(
        enter == "embeddings" or query == "decoder", "vectors as encoder states need the query on the decoder's side"
    )
    ahead = len(start)
    usual = ahead + LIMIT + 1 + CONTEXT
    room, space = llm_positions or usual, distiller_positions or usual
    limit = min(LIMIT, room // 4) if limit is None else limit
    context = min(CONTEXT, room - ahead - limit - 1) if context is None else context
    budget = min(BUDGET, space - ahead - length) if budget is None else budget
    found = Reading(length, groups, layout, channel, limit, budget, context, enter, query, tuple(start))
    _check(found, llm_positions, distiller_positions)
    return found


def _check(reading: Reading, llm: int | None, distiller: int | None) -> None:
    ahead = len(reading.start)
    first = f"{ahead} to start with, " if ahead else ""
    require(reading.limit >= 4, f"limit: a query needs at least 4 tokens of room, but has {reading.limit}")
    require(
        llm is None or ahead + reading.vectors + reading.limit <= llm,
        f"{first}{reading.vectors} vectors and a query of up to {reading.limit} tokens exceed the LLM's {llm} "
        "positions; lower length or limit",
    )
    require(
        llm is None or 0 < reading.context <= llm - reading.limit - ahead,
        f"{first}{reading.context} tokens of demonstrations and a query of up to {reading.limit} exceed the LLM's "
        f"{llm} positions; lower context or limit",
    )
    require(
        reading.budget > 0 and (distiller is None or ahead + reading.budget + reading.length <= distiller),
        f"{first}{reading.budget} tokens of demonstrations and {reading.length} placeholders exceed the distiller's "
        f"{distiller} positions; lower budget or length",
    )
