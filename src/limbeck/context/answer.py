"""A frozen LLM behind one context, ready for queries: it scores options, or writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from limbeck.context.collate import Collate
from limbeck.context.host import Host
from limbeck.context.vectors import Vectors
from limbeck.core.check import require
from limbeck.data.templates import Example
from limbeck.evaluation.generate import generate
from limbeck.evaluation.prefix import Prefix, read_prefix
from limbeck.evaluation.score import best, score_options
from limbeck.models.load import load_tokenizer

THESE = "these vectors"


@dataclass(frozen=True)
class Answerer:
    """``lm`` that has read ``prefix`` once, and ``collate``, which lays queries out for it."""

    lm: Any
    tokenizer: Any
    collate: Collate
    prefix: Prefix

    @property
    def positions(self) -> int:
        """Positions that the context takes, the LLM's start tokens included."""
        return 0 if self.prefix.embeds is None else self.prefix.embeds.shape[1]

    def scores(self, queries: Sequence[Example]) -> list[Tensor]:
        """Mean log-probability per token of every query's options: one tensor (options,) each, in nats."""
        reading = self.collate.reading
        for query in queries:
            require(len(query.options) > 1, f"{query.input!r}: choosing needs at least two options")
        items = [reading.text.options(self.collate.tokenizer, q.input, q.options, reading.limit) for q in queries]
        return score_options(self.lm, self.prefix, items)

    def answers(self, queries: Sequence[Example], tokens: int = 32) -> list[str]:
        """The best option of each query that has options; for those without, what the LLM writes, up to a newline."""
        chosen = [query for query in queries if query.options]
        free = [query.input for query in queries if not query.options]
        picks = iter([q.options[best(s)] for q, s in zip(chosen, self.scores(chosen), strict=True)] if chosen else [])
        written = iter(self.write(free, tokens) if free else [])
        return [next(picks if query.options else written) for query in queries]

    def score(self, text: str, options: Sequence[str]) -> dict[str, float]:
        """Mean log-probability per token of each option as an answer to ``text``."""
        scores = self.scores([Example("", text, "", tuple(options))])[0]
        return dict(zip(options, scores.tolist(), strict=True))

    def complete(self, text: str, options: Sequence[str] = (), tokens: int = 32) -> str:
        """The best option as an answer to ``text``, or, without options, what the LLM writes."""
        return self.answers([Example("", text, "", tuple(options))], tokens)[0]

    def write(self, inputs: Sequence[str], tokens: int = 32) -> list[str]:
        """Greedy answers of at most ``tokens`` tokens, up to a newline."""
        reading = self.collate.reading
        prompts = [reading.text.prompt(self.collate.tokenizer, text, reading.limit) for text in inputs]
        return generate(self.lm, self.tokenizer, self.prefix, prompts, new_tokens=tokens)


def behind_vectors(vectors: Vectors, lm: Any = None, tokenizer: Any = None) -> Answerer:
    """The LLM behind ``vectors``: loaded from where they say unless ``lm`` is given; another LLM is refused."""
    if lm is None:
        lm, tokenizer = _loaded(vectors.host)
    vectors.host.check(lm, THESE)
    tokenizer = tokenizer or vectors.tokenizer or load_tokenizer(vectors.host.llm)
    return _answerer(lm, Collate(tokenizer, vectors.host, vectors.reading), tokenizer, vectors.tensor)


def behind_text(lm: Any, tokenizer: Any, collate: Collate, demos: Sequence[Example]) -> Answerer:
    """The LLM behind the demonstrations' text: in-context learning."""
    return _answerer(lm, collate, tokenizer, torch.tensor(collate.context(demos)))


def alone(lm: Any, tokenizer: Any, collate: Collate) -> Answerer:
    """The LLM behind nothing but its start: zero-shot."""
    start = collate.opened([])
    return _answerer(lm, collate, tokenizer, torch.tensor(start) if start else None)


@lru_cache(1)
def _loaded(host: Host) -> tuple[Any, Any]:
    """The LLM that was asked for last, so that answering query after query loads it once."""
    return host.load(THESE)


def _answerer(lm: Any, collate: Collate, tokenizer: Any, prefix: Tensor | None) -> Answerer:
    reading = collate.reading
    enter = reading.enter if prefix is not None and prefix.is_floating_point() else "embeddings"
    return Answerer(lm, tokenizer, collate, read_prefix(lm, prefix, enter=enter, query=reading.query))
