"""Choosing among options by the language model's probability (MetaICL, arXiv 2110.15943; MEND, arXiv 2403.06914).

An *item* is one question: for each option the ids of the prompt and the ids that are scored. Direct: the prompt is the
query, scored is the answer. Channel: the prompt is the answer, scored is the query. ``Layout.options`` makes items from
text. The score of an option is the log-probability of its scored ids given prefix and prompt, divided by their number
(``reduce="mean"``); higher is better. A query's first token is never scored, since a prompt has at least one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.core.check import one_of, require
from limbeck.evaluation.cache import head_at, quiet
from limbeck.evaluation.model import check_ids
from limbeck.evaluation.prefix import Pair, Prefix, read_prefix

Item = Sequence[Pair]


def score_options(
    lm: Any,
    prefix: Tensor | Prefix | None,
    items: Sequence[Item],
    *,
    reduce: str = "mean",
    neutral: Sequence[Item] | None = None,
    batch: int = 32,
    share: bool = True,
    enter: str = "embeddings",
    query: str = "decoder",
) -> list[Tensor]:
    """Scores of every item's options: one tensor (C,) per item, in nats, on the CPU, in float32 or the model's float64.

    ``lm`` is a causal or encoder-decoder model of transformers. ``prefix`` is read once for all rows (``read_prefix``,
    whose result may be passed to share it between calls). ``neutral`` gives for each item the same options under an
    input without content, whose score is subtracted (calibration; "N/A" in MetaICL). ``batch`` rows are read at once,
    fewer where a long prefix would need too much memory. ``share``, ``enter``, ``query``: see ``read_prefix``.

    Raises for an item with fewer than two options, equal options, an empty prompt, an option without tokens, and a row
    that is longer than the model's positions together with the prefix.
    """
    one_of(reduce, ("mean", "sum"), "reduce")
    require(items, "there is nothing to score; give at least one item")
    require(
        neutral is None or len(neutral) == len(items),
        f"there are {len(items)} items, but {len(neutral or ())} neutral ones; give one for each",
    )
    read = prefix if isinstance(prefix, Prefix) else read_prefix(lm, prefix, enter=enter, query=query, share=share)
    every = [*items, *(neutral or ())]
    for number, item in enumerate(every):
        check_item(lm, item, f"item {number % len(items) + 1}{' (neutral)' if number >= len(items) else ''}")
    rows = list(dict.fromkeys((tuple(prompt), tuple(scored)) for item in every for prompt, scored in item))
    value = dict(zip(rows, log_probabilities(read, rows, reduce, batch).unbind(), strict=True))
    scores = [torch.stack([value[tuple(prompt), tuple(scored)] for prompt, scored in item]) for item in every]
    return scores if neutral is None else [a - b for a, b in zip(scores, scores[len(items) :], strict=False)]


def best(scores: Tensor) -> int:
    """The option with the highest score; the first of equals, as in MetaICL."""
    return int((scores == scores.max()).nonzero()[0])


def check_item(lm: Any, item: Item, where: str) -> None:
    """Raise unless ``item`` is a choice that can be scored; ``where`` names it."""
    require(len(item) > 1, f"{where} has {len(item)} option; choosing needs at least two")
    for number, (prompt, scored) in enumerate(item, 1):
        require(len(prompt), f"{where}, option {number}: the prompt is empty; a query needs at least one token")
        require(len(scored), f"{where}, option {number}: there is no token to score; an option needs text")
        check_ids(lm, (*prompt, *scored))
    different = len({(tuple(prompt), tuple(scored)) for prompt, scored in item})
    require(different == len(item), f"{where} has two options with the same tokens; options must differ")


def log_probabilities(read: Prefix, rows: Sequence[Pair], reduce: str = "mean", batch: int = 32) -> Tensor:
    """Log-probability n of the scored ids of each (prompt, scored) pair behind a prefix, in nats."""
    for prompt, scored in rows:
        read.check_room(len(prompt), len(scored))
    out = torch.zeros(len(rows), dtype=torch.promote_types(torch.float32, read.lm.dtype))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    step = read.at_once(batch)
    with quiet(read.lm):
        for start in range(0, len(rows), step):
            chosen = order[start : start + step]
            out[chosen] = _batch(read, [rows[i] for i in chosen], reduce).to(out)
    require(not out.isnan().any(), "the language model gave NaN; check its weights and precision")
    return out


def sequence_scores(logits: Tensor, ids: Tensor, scored: Tensor, reduce: str = "mean") -> Tensor:
    """Scores b of whole rows: ``logits`` b t v, ``ids`` b t, ``scored`` b t bool (never true at position 0).

    Position t - 1 predicts token t. The mean (or sum) runs over the scored tokens.
    """
    require(scored.any(1).all(), "a row has no scored token; every row needs at least one")
    require(not scored[:, 0].any(), "the first token of a row cannot be scored, since nothing precedes it")
    targets = scored[:, 1:]
    return _per_row(logits[:, :-1][targets], ids[:, 1:][targets], targets.nonzero()[:, 0], reduce)


def _batch(read: Prefix, rows: Sequence[Pair], reduce: str) -> Tensor:
    """Scores of one padded batch. Only states that predict a scored token reach the model's head."""
    inputs, where = read.inputs(rows)
    with head_at(read.lm, where):
        logits = read.lm(**inputs).logits
    targets = torch.tensor([token for _, scored in rows for token in scored], device=logits.device)
    if logits.shape[:2] != (1, len(targets)):  # a head that is not called as a module: pick the positions afterwards
        logits = logits[:, -where.shape[1] :][where.to(logits.device)][None]
    row = torch.repeat_interleave(torch.tensor([len(scored) for _, scored in rows], device=logits.device))
    return _per_row(logits[0], targets, row, reduce).cpu()


def _per_row(logits: Tensor, targets: Tensor, row: Tensor, reduce: str) -> Tensor:
    """Sum or mean per row of log p(target): ``logits`` n v, ``targets`` n, ``row`` n (sorted, every row present)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    counts = row.bincount()
    total = values.new_zeros(len(counts)).index_add(0, row, values)
    return total / counts if reduce == "mean" else total
