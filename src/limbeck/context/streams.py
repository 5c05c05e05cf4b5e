"""Batches for training a distiller: documents for stage 1, episodes for stage 2, queries alone for prompt tuning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from limbeck.context.collate import SHARE, Collate, Documents, query_batch
from limbeck.context.distiller import Distiller
from limbeck.core.batch import Batch
from limbeck.data.stream import Batches
from limbeck.data.tasks import Episode, Episodes, Task, TaskPool
from limbeck.data.templates import Example
from limbeck.sources.views import positions


def document_stream(
    distiller: Distiller, texts: Iterable[str], batch: int, seed: int = 0, share: float = SHARE
) -> tuple[Batches, int]:
    """Stage 1: documents cut in two. Also tells how many were too short and left out; raises if all were."""
    collate = Documents(distiller.collate(), positions(distiller.backbone.config), share)
    rows, short = collate.tokenize(texts, distiller.tokenizer)
    return Batches(rows, collate, batch, seed, size_of=len), short


def episode_stream(
    distiller: Distiller,
    tasks: Sequence[Task],
    batch: int,
    shots: int = 16,
    seed: int = 0,
    cap: int = 16_384,
    noise: float = 0.0,
    ablation: str = "none",
    asked: int = 1,
) -> Batches:
    """Stage 2: every row of every task is a query, with ``shots`` other rows of its task as demonstrations.

    ``noise``: share of answers replaced by random ones; ``ablation`` damages demonstrations (``data.ablations``);
    ``asked``: queries for each set of demonstrations, in one row.
    """
    drawn = Episodes(TaskPool(tasks, cap), shots, seed, ablation, noise, asked)
    return Batches(drawn, distiller.collate(), batch, seed, shuffle=False, size_of=_characters)


def query_stream(collate: Collate, examples: Sequence[Example], batch: int, seed: int = 0) -> Batches:
    """Queries without demonstrations."""

    def rows(examples: Sequence[Example]) -> Batch:
        return query_batch([collate.query(example.input, example.output) for example in examples])

    return Batches(list(examples), rows, batch, seed)


def _characters(episode: Episode) -> int:
    """About how long an episode is, without tokenizing it."""
    return sum(len(example.input) + len(example.output) for example in episode.demos)
