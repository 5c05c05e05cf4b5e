"""MetaICL's evaluation layout, token for token (Min et al., arXiv 2110.15943, as released).

It differs from ``Layout`` in three ways: the separator before an example belongs to that example's first side, the
per-example limit counts all separators, and a sequence that is too long loses its left end, whatever stands there.
Use it to repeat MetaICL's numbers; ``Layout`` keeps demonstrations and queries apart, so that a prefix can be shared.
"""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.core.check import require
from limbeck.data.templates import SPARE, Example, Tokenizer, encode

Pair = tuple[list[int], list[int]]


def metaicl_item(
    tokenizer: Tokenizer,
    demos: Sequence[Example],
    query: Example,
    *,
    channel: bool = False,
    newlines: bool = True,
    limit: int = 256,
    total: int = 1024,
) -> list[Pair]:
    """For each option of ``query`` the ids of the context and the ids that are scored.

    ``newlines``: the layout of trained models (a newline before the answer, three before the next example); without,
    single spaces (raw models). ``limit``: tokens per example, the input is cut on the right, for the longest option.
    ``total``: tokens of the whole sequence, the context is cut on the left.

    Raises for a channel query without input, which would have nothing to score, and for scored text beyond ``total``.
    """
    require(query.input or not channel, "a channel query has no input, so there is nothing to score; leave the row out")
    shown = (_demo(tokenizer, demo, i == 0, channel, newlines, limit) for i, demo in enumerate(demos))
    context = [token for ids in shown for token in ids]
    sides = [_sides(tokenizer, query.input, option, not demos, channel, newlines) for option in query.options]
    room = limit - SPARE - max((len(y) for _, y in sides), default=0)
    pairs = [_order(x[: max(room, 0)], y, channel) for x, y in sides]
    longest = max((len(scored) for _, scored in pairs), default=0)
    require(longest < total, f"{longest} tokens are to be scored, but a sequence holds {total}; raise the total")
    return [((context + first)[max(0, len(context) + len(first) + len(y) - total) :], y) for first, y in pairs]


def _demo(tokenizer: Tokenizer, example: Example, first: bool, channel: bool, newlines: bool, limit: int) -> list[int]:
    x, y = _sides(tokenizer, example.input, example.output, first, channel, newlines)
    one, two = _order(x[: max(limit - SPARE - len(y), 0)], y, channel)
    return one + two


def _sides(
    tokenizer: Tokenizer, x: str, y: str, first: bool, channel: bool, newlines: bool
) -> tuple[list[int], list[int]]:
    """Ids of input and output with their separators. ``first``: nothing precedes the example."""
    answer, between = ("\n", "\n\n\n") if newlines else (" ", " ")
    if channel:
        before_x, before_y = (answer if x and y else ""), ("" if first else between)
    else:
        before_x, before_y = ("" if first else between), (answer if y else "")
        if newlines and not x and not first:
            before_x = "\n\n"  # the answer's own newline is the third
    return encode(tokenizer, before_x + x), encode(tokenizer, before_y + y)


def _order(x: list[int], y: list[int], channel: bool) -> Pair:
    return (y, x) if channel else (x, y)
