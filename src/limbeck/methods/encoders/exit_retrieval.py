"""The second stage of ``limbeck modular_encoder``: texts find their matches, at every exit.

Not a method: the ``Config`` of the method inherits ``Retrieving``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.atlas.pairs import parallel_retrieval, retrieval
from limbeck.core.batch import Batch, to_device
from limbeck.core.check import require
from limbeck.core.fit import fit
from limbeck.core.signals import Signals
from limbeck.core.stage import Optim, Stage, distill_step, stage_settings
from limbeck.data.matches import Match, match_batches, once, read_matches
from limbeck.data.mixture import Mixture
from limbeck.evaluation.retrieval import found, ranks
from limbeck.objectives.exits import at_exits, depth_shares, finds_its_match
from limbeck.report.sections import Table
from limbeck.run import Started, save_artefact
from limbeck.students.exit_vectors import ExitVectors, encode
from limbeck.students.layers import shape

MOST = 256  # pairs of a kind that are kept to measure by


@dataclass(frozen=True, kw_only=True)
class Retrieving:
    """How an encoder with exits learns to find matches."""

    pairs: tuple[str, ...] = ()
    """For retrieve: jsonl of query and match, or question and answer, text and code; several files are equally mixed
    (paper: text and code, code in two languages). By default the atlas's: question and record, record in two languages.
    """
    retrieve_steps: int = 100
    """Optimizer steps of retrieve; paper: 20,000. 100 suit the atlas."""
    retrieve_batch: int = 64
    """Pairs per batch, each to be told from all others; paper: 2048."""
    retrieve_lr: float = 5e-4
    """Peak learning rate of retrieve, linear decay; paper: 1e-5."""
    scale: float = 10.0
    """What multiplies cosines before the softmax (1 / temperature); paper."""
    rename: float = 0.3
    """Probability that the names that a match says more than once are replaced in it; paper."""


Kinds = Mapping[str, tuple[list[Match], list[Match]]]
"""Pairs to learn from and pairs to measure by, by kind."""


def kinds_of(cfg: Any) -> Kinds:
    """The pairs that ``cfg`` names, each kind parted; texts that come twice are left out."""
    require(cfg.scale > 0, f"--scale {cfg.scale}: expected a number above 0")
    require(cfg.retrieve_steps >= 1, f"--retrieve-steps {cfg.retrieve_steps}: expected a whole number of at least 1")
    require(cfg.retrieve_lr > 0, f"--retrieve-lr {cfg.retrieve_lr}: expected a learning rate above 0")
    size = cfg.retrieve_batch
    require(size >= 2, f"--retrieve-batch {size}: a pair is told from the other pairs of its batch; give 2 or more")
    found = {name: once(read_matches(name)) for name in cfg.pairs} or _atlas(cfg.seed)
    parted = {}
    for name, pairs in found.items():
        held = min(len(pairs) // 10, MOST)
        whole = (len(pairs) - held) // size * size  # a batch across two epochs could hold a pair twice
        require(
            held > 1 and whole,
            f"{name}: {len(pairs)} different pairs are too few for batches of {size}; lower "
            "--retrieve-batch or give more, at least 20",
        )
        order = np.random.default_rng([cfg.seed, 19]).permutation(len(pairs))  # files may be sorted
        mixed = [pairs[i] for i in order]
        parted[name] = mixed[held : held + whole], mixed[:held]
    return parted


def match_stream(kinds: Kinds, tokenizer: Any, cfg: Any) -> Mixture:
    """Training batches, each of one kind, every kind as often."""
    settings = tokenizer, cfg.length, cfg.retrieve_batch, cfg.seed, cfg.rename
    return Mixture({name: match_batches(train, *settings) for name, (train, _) in kinds.items()}, seed=cfg.seed)


def retrieve(
    vectors: ExitVectors, stream: Iterable[Batch], cfg: Any, out: Path | None = None, engine: Any = None
) -> dict[str, float]:
    """Train ``vectors`` in place: sum over exits i of i / L * the contrast of the batch's pairs at i."""
    goal = at_exits(finds_its_match(cfg.scale), depth_shares(vectors.exits, shape(vectors.encoder)[0]))
    stage = Stage(
        "retrieve",
        distill_step(lambda batch: vectors(batch), lambda batch: Signals(), goal),
        train={"vectors": vectors},
        stream=stream,
        steps=cfg.retrieve_steps,
        optim=Optim(cfg.retrieve_lr, "linear", cfg.warmup, (0.9, 0.95), cfg.weight_decay, 1e-6),
        **stage_settings(cfg),
    )
    return fit(stage, out, engine)


def finds(vectors: ExitVectors, kinds: Kinds, tokenizer: Any, cfg: Any, device: Any) -> dict[str, float]:
    """``mrr`` and recall of each exit (``mrr.4``): held-out matches among all of their kind, averaged over kinds."""
    vectors.eval().to(device)
    sums: dict[str, float] = {}
    for _, held in kinds.values():
        size = min(len(held), 64)
        rest = -len(held) % size
        stream = match_batches([*held, *held[:rest]], tokenizer, cfg.length, size, shuffle=False)
        batches = [to_device(batch, device) for batch in stream.take((len(held) + rest) // size)]
        queries = [encode(vectors, batch["ids"], batch["mask"]) for batch in batches]
        matches = [encode(vectors, batch["match_ids"], batch["match_mask"]) for batch in batches]
        for i, layer in enumerate(vectors.exits):
            ours, theirs = (torch.cat([one[i] for one in side])[: len(held)] for side in (queries, matches))
            for name, value in found(ranks(ours @ theirs.T)).items():
                sums[f"{name}.{layer}"] = sums.get(f"{name}.{layer}", 0.0) + value / len(kinds)
    return sums


def retrieved(
    vectors: ExitVectors, stream: Mixture, kinds: Kinds, tokenizer: Any, cfg: Any, run: Started
) -> tuple[dict[str, Any], Table]:
    """Train, and save an encoder of texts per exit in ``retrieval/exit-<layers>``; what was found, and a table."""
    engine = run.accelerator
    before = finds(vectors, kinds, tokenizer, cfg, engine.device)
    said = retrieve(vectors, stream, cfg, run.stage_dir, engine)
    after = finds(vectors, kinds, tokenizer, cfg, engine.device)
    for layer in vectors.exits:
        folder = run.out / "retrieval" / f"exit-{layer}"
        folder.mkdir(parents=True, exist_ok=True)
        for part in (vectors.at_exit(layer), tokenizer):
            save_artefact(part, folder)
    return {**said, "held_out": after, "before": before}, _table(vectors.exits, before, after, kinds)


def _table(exits: Sequence[int], before: Mapping[str, float], after: Mapping[str, float], kinds: Kinds) -> Table:
    """MRR and recall at each exit before and after."""
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in after))
    columns = ("layers", *(f"{name} {when}".replace("_", " at ") for name in names for when in ("before", "after")))
    rows = [(layer, *(side[f"{name}.{layer}"] for name in names for side in (before, after))) for layer in exits]
    sizes = ", ".join(str(len(held)) for _, held in kinds.values())
    return Table(
        "Finding the match", columns, rows, f"Held-out pairs ({sizes} by kind), each match among all of its kind."
    )


def _atlas(seed: int) -> dict[str, list[Match]]:
    told = {"questions": retrieval("en", 2000, seed, 1), "translations": parallel_retrieval("en", "ro", 2000, seed, 1)}
    return {name: once([Match(str(r["query"]), str(r["positive"])) for r in rows]) for name, rows in told.items()}
