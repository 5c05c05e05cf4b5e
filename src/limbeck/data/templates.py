"""How an example becomes tokens: one layout, written once, used for demonstrations, queries and options.

``x`` is the input of an example and ``y`` its output. The separator *answer* belongs to ``y``'s tokens (it is predicted
and scored with them); the separator *between* belongs to the end of a demonstration, so the ids of a query are the same
whatever precedes them. Every part is encoded on its own, without special tokens.

Truncation as in MEND and MetaICL: ``len(x) + len(y) + 2 <= limit`` with ``x`` cut on the right and ``y`` kept;
demonstrations are added while they fit, the first that does not fit loses the right end of its ``x``, the list stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from limbeck.core.check import one_of, require

Tokenizer = Callable[..., Mapping[str, Any]]

SPARE = 2  # tokens of the per-example limit that both papers leave unused


@dataclass(frozen=True)
class Example:
    """One row of a task: ``options`` are the answers to choose from, empty when the answer is free text."""

    task: str
    input: str
    output: str
    options: tuple[str, ...] = ()


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of ``text`` without special tokens; the empty text has none."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def cached(tokenizer: Tokenizer, size: int = 1 << 17) -> Tokenizer:
    """The same tokenizer, remembering its last ``size`` texts: episodes encode the same examples again and again."""

    @lru_cache(size)
    def remembered(text: str, add_special_tokens: bool = False) -> Mapping[str, Any]:
        return tokenizer(text, add_special_tokens=add_special_tokens)

    return remembered


def fit_pair(x: list[int], y: list[int], limit: int) -> tuple[list[int], list[int]]:
    """Cut ``x`` on the right so that both fit ``limit``; a ``y`` that alone exceeds it shares the room with ``x``."""
    room = limit - SPARE
    require(room >= 2, f"a limit of {limit} tokens per example leaves no room; it must be at least {SPARE + 2}")
    if len(y) > room:
        x = x[: room // 2]
        return x, y[: room - len(x)]
    return x[: room - len(y)], y


@dataclass(frozen=True)
class Layout:
    """A text layout: ``x answer y between x answer y between ... x answer y``.

    With ``channel`` the two sides change places, the prompt is the output and the input is scored (p(x | y)); what is
    cut on the right is the input in both directions.
    """

    name: str
    answer: str = " "
    between: str = ""
    channel: bool = False

    def reversed(self) -> Layout:
        """The channel direction of this layout, or back."""
        return replace(self, channel=not self.channel)

    def example(self, tokenizer: Tokenizer, x: str, y: str, limit: int = 256) -> tuple[list[int], list[int]]:
        """Ids of both sides, together at most ``limit - 2``; the second begins with the separator."""
        ids_x, ids_y = fit_pair(encode(tokenizer, self._input(x)), encode(tokenizer, self._output(y)), limit)
        return (ids_y, ids_x) if self.channel else (ids_x, ids_y)

    def demo(self, tokenizer: Tokenizer, example: Example, limit: int = 256) -> list[int]:
        """Ids of one demonstration, the separator to the next one included."""
        first, second = self.example(tokenizer, example.input, example.output, limit)
        return first + second + encode(tokenizer, self.between)

    def demos(self, tokenizer: Tokenizer, examples: Iterable[Example], budget: int, limit: int = 256) -> list[int]:
        """Ids of as many demonstrations, in order, as ``budget`` tokens hold; see the module for the cut.

        Raises if there is no demonstration, or not even a cut one fits.
        """
        examples = list(examples)
        require(examples, "the list of demonstrations is empty; give at least one example")
        ids = [token for part in self.fitting(tokenizer, examples, budget, limit) for token in part]
        require(ids, f"not even the first demonstration fits the budget of {budget} tokens; raise it")
        return ids

    def fitting(
        self, tokenizer: Tokenizer, examples: Iterable[Example], budget: int, limit: int = 256
    ) -> list[list[int]]:
        """Ids of each demonstration of ``demos``: those that fit and, last, the one that had to be cut."""
        parts, left = list[list[int]](), budget
        for example in examples:
            part = self.demo(tokenizer, example, limit)
            left -= len(part)
            if left < 0:
                part = self._cut(tokenizer, example, limit, -left)
                return [*parts, part] if part else parts
            parts.append(part)
        return parts

    def query(self, tokenizer: Tokenizer, x: str, y: str, limit: int = 256) -> tuple[list[int], int]:
        """Ids of a query with its answer, and how many of them are the prompt: the rest is predicted and scored."""
        first, second = self.example(tokenizer, x, y, limit)
        return first + second, len(first)

    def prompt(self, tokenizer: Tokenizer, x: str, limit: int = 256) -> list[int]:
        """Ids of a query whose answer is to be written (direct layouts only)."""
        require(
            not self.channel, f"layout {self.name!r} is a channel layout, which scores inputs and cannot write answers"
        )
        return encode(tokenizer, x)[: limit - SPARE]

    def options(
        self, tokenizer: Tokenizer, x: str, options: Sequence[str], limit: int = 256
    ) -> list[tuple[list[int], list[int]]]:
        """For each option the prompt ids and the scored ids.

        The input is cut for the longest option, so that all options see the same input (MetaICL). An option that does
        not fit ``limit`` is refused, never cut.
        """
        longest = max((len(encode(tokenizer, self._output(y))) for y in options), default=0)
        require(
            longest + SPARE < limit,
            f"an option has {longest} tokens, more than the limit of {limit} per example allows",
        )
        kept = encode(tokenizer, self._input(x))[: limit - SPARE - longest]
        pairs = [(kept, encode(tokenizer, self._output(y))) for y in options]
        return [(y, x) for x, y in pairs] if self.channel else pairs

    def _input(self, x: str) -> str:
        """The input's text; in channel direction it comes second and carries the separator."""
        return self.answer + x if self.channel and x else x

    def _output(self, y: str) -> str:
        """The output's text; in direct layouts it comes second and carries the separator."""
        return y if self.channel or not y else self.answer + y

    def _cut(self, tokenizer: Tokenizer, example: Example, limit: int, excess: int) -> list[int]:
        """The demonstration that does not fit: its input shorter by ``excess`` tokens, or nothing if none is left."""
        first, second = self.example(tokenizer, example.input, example.output, limit)
        text = second if self.channel else first
        if excess >= len(text):
            return []
        del text[len(text) - excess :]
        return first + second + encode(tokenizer, self.between)


LAYOUTS = {
    "mend": Layout("mend", answer=" ", between=""),
    "metaicl": Layout("metaicl", answer="\n", between="\n\n\n"),
    "space": Layout("space", answer=" ", between=" "),
}


def layout(name: str | Layout, channel: bool = False) -> Layout:
    """A layout by name (``mend``, ``metaicl``, ``space``), or the layout itself."""
    found = name if isinstance(name, Layout) else LAYOUTS[one_of(name, LAYOUTS, "layout")]
    return replace(found, channel=True) if channel else found
