"""ModularStarEncoder: one encoder whose every prefix is a smaller model.

Paper:      Gurioli et al., AAAI 2026, arXiv 2503.03008 ("One Model to Train them All", later "MoSE").
Says:       the same losses at several depths, each weighed by its depth, make one checkpoint that can be cut at any of
            them. The deeper exits shape the layers below: that is the self-distillation, there is no teacher.
Parts:      students (exits, exit_vectors) | objectives (exits, hard) | data (repositories, matches)
Needs:      an encoder like BERT or RoBERTa with its masked-word head, and texts that say where they come from; to
            retrieve, pairs of texts. Signals: exits. Batch: ids, mask, targets, answer, same; match_ids, match_mask.
Departures: any masked language model in the place of StarCoder2 without its causal mask. Exits' vectors start at zero.
            Weights are the paper's, not normalised, so compare rates with a single exit at 1 / their sum. Texts are
            pooled at their first token. Projections begin as identities; the scale is not learned; a batch holds pairs
            of one kind, and each process contrasts its own. Which names are replaced in code is not said: those that
            come more than once.
Checked:    from the equations (no training code was released): both losses at each exit and their weighted sum; the
            contrast and its gradients from open_clip; models cut at an exit say what the exit does, in
            sentence-transformers 6.2 too.
Claim:      claims/modular_encoder.py, against training the last exit alone. Early exits are far better for it (3.95
            against 4.94 nats a word after 1 of 4 layers) and the last pays 1 %; but the first is 4.5 % behind an
            encoder of one layer trained alone, where the paper has exits ahead. Whether texts belong together stayed a
            guess at every exit of every arm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limbeck.analyses.doctor import doctor
from limbeck.analyses.measure import measure
from limbeck.atlas.topics import topics
from limbeck.core.batch import Batch
from limbeck.core.check import in_order, require
from limbeck.core.fit import fit
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective, Optim, Stage, distill_step, stage_settings
from limbeck.data.held import Split, hold_out
from limbeck.data.repositories import place_batches, read_places
from limbeck.evaluation.model import check_length
from limbeck.methods.encoders.exit_retrieval import Retrieving, kinds_of, match_stream, retrieved
from limbeck.objectives.exits import at_exits, belongs_together, depth_shares
from limbeck.objectives.tokens import hard
from limbeck.objectives.weighted import weighted
from limbeck.report.sections import Section, Table
from limbeck.run import Run, Started, begin, save_artefact, seed_all
from limbeck.sources.model import model_source
from limbeck.students.exit_vectors import ExitVectors
from limbeck.students.exits import MultiExit, open_exits

Arm = Literal["pretrain", "retrieve"]
ARMS: tuple[Arm, ...] = ("pretrain", "retrieve")


@dataclass(frozen=True)
class Config(Retrieving, Run):
    """Settings of ``limbeck modular_encoder``."""

    out: Path = Path("runs/modular_encoder")
    """Folder that the run writes: the whole model, one folder exit-<layers> for each smaller one, and in retrieval/ the
    encoders of texts."""
    stages: tuple[Arm, ...] = ARMS
    """pretrain: masked words and places; retrieve: finding the match of a text. In the paper's order."""
    model: str = "limbeck:atlas/weights/encoder-a"
    """Folder or Hub id of a masked language model, or of a run of this method, whose exits are kept; by default an
    encoder that ships with limbeck."""
    size: str | None = None
    """A size like 6x384: the model's architecture anew at that size (paper: from scratch); None: as it is."""
    exits: tuple[int, ...] = ()
    """Layers after which the model can be cut; paper: 4 9 18 27 36. By default four, evenly spread, if there are."""
    data: str | None = None
    """jsonl with text and repository (the place that a text comes from); by default kinds of sentences of the atlas."""
    texts: int = 4
    """Texts in a row; paper: as many as fill 2048 tokens."""
    weight_words: float = 1.0
    """Weight of the masked-word loss; paper."""
    weight_same: float = 1.0
    """Weight of the same-place loss; paper."""
    steps: int = 150
    """Optimizer steps; paper: 245,000. 150 suit the atlas."""
    batch: int = 32
    """Rows per batch; paper: 4 M tokens."""
    length: int = 96
    """Tokens per row; paper: 2048."""
    lr: float = 5e-4
    """Peak learning rate, linear decay; ours."""
    warmup: float = 0.02
    """Share of the steps that warm up; paper: 4,000 of 245,000."""
    weight_decay: float = 0.1
    """Decoupled weight decay; paper. Betas are 0.9 and 0.95, eps 1e-6."""


def exit_loss(exits: tuple[int, ...], layers: int, words: float = 1.0, same: float = 1.0) -> Objective:
    """sum over exits i of i / L * (masked-word loss at i + same-place loss at i)."""
    parts = {"words": (words, hard()), "same": (same, belongs_together())}
    for name, (weight, _) in parts.items():
        require(weight >= 0, f"--weight-{name} {weight}: expected a weight of at least 0")
    wanted = {name: part for name, part in parts.items() if part[0] > 0}
    require(wanted, "modular_encoder: both weights are 0, so there is nothing to learn; raise one")
    return at_exits(weighted(**wanted), depth_shares(exits, layers))


def modular_encoder(
    model: MultiExit, stream: Iterable[Batch], cfg: Config, out: Path | None = None, engine: Any = None
) -> dict[str, float]:
    """Train ``model`` in place at all its exits at once; ``out`` and ``engine`` go to ``fit``."""
    goal = exit_loss(model.exits, model.depth, cfg.weight_words, cfg.weight_same)
    stage = Stage(
        "pretrain",
        distill_step(lambda batch: model(batch), lambda batch: Signals(), goal),
        train={"model": model},
        stream=stream,
        steps=cfg.steps,
        optim=Optim(cfg.lr, "linear", cfg.warmup, (0.9, 0.95), cfg.weight_decay, 1e-6),
        **stage_settings(cfg),
    )
    return fit(stage, out, engine)


def main(cfg: Config) -> Path:
    """Train exits into ``cfg.model``; writes the model, its smaller ones, encoders of texts and a report."""
    stages = in_order(cfg.stages, ARMS, "--stages")
    seed_all(cfg.seed)
    model, tokenizer = open_exits(cfg.model, cfg.exits, cfg.size)
    exit_loss(model.exits, model.depth, cfg.weight_words, cfg.weight_same)  # refuses weights that make no sense
    check_length(cfg.length, model=model.model)
    split = _split(cfg, tokenizer) if "pretrain" in stages else None
    kinds = kinds_of(cfg) if "retrieve" in stages else {}
    stream = match_stream(kinds, tokenizer, cfg) if kinds else None
    run = begin(cfg, "modular_encoder")
    device = run.accelerator.device
    run.heed(doctor(model_source(model.model.to(device)), None, tokenizer, batches=split.on(device) if split else ()))
    metrics: dict[str, Any] = {}
    tables: list[Section] = []
    whole = None
    if split:
        metrics["pretrain"], table = _pretrained(model, split, cfg, run)
        tables.append(table)
        whole = model.at_exit(model.exits[-1])  # before it turns into an encoder of texts
        _save(model, tokenizer, run.out)
    if stream:
        vectors = ExitVectors(model.model.base_model, model.exits)
        metrics["retrieve"], table = retrieved(vectors, stream, kinds, tokenizer, cfg, run)
        tables.append(table)
    return run.finish(whole, tokenizer, metrics, tables)


def _pretrained(model: MultiExit, split: Split, cfg: Config, run: Started) -> tuple[dict[str, Any], Table]:
    """Train on words and places; what was measured before and after."""
    device = run.accelerator.device
    compare = distill_step(lambda batch: model(batch), lambda batch: Signals(), exit_loss(model.exits, model.depth))
    model.eval().to(device)
    before = measure(compare, split.on(device))
    said = modular_encoder(model, split.stream, cfg, run.stage_dir, run.accelerator)
    after = measure(compare, split.on(device))
    return {**said, split.name: after, "before": before}, _table(model, before, after, split.rows)


def _split(cfg: Config, tokenizer: Any) -> Split:
    """Rows of the user's places or the atlas's, some held out."""
    places: dict[str, list[str]] = read_places(cfg.data) if cfg.data is not None else {}
    for row in topics("en", 2000, cfg.seed) if cfg.data is None else ():
        places.setdefault(row["label"], []).append(row["text"])
    rows = cfg.batch * min(cfg.steps, 200) + 4 * cfg.batch
    return hold_out(place_batches(places, tokenizer, cfg.length, cfg.batch, rows, cfg.texts, cfg.seed))


def _save(model: MultiExit, tokenizer: Any, out: Path) -> None:
    """The whole model with its exits in ``out``, and each smaller one in ``out``/exit-<layers>."""
    save_artefact(model, out)
    for layer in model.exits[:-1]:
        small = out / f"exit-{layer}"
        small.mkdir(exist_ok=True)
        for part in (model.at_exit(layer), tokenizer):
            save_artefact(part, small)


def _table(model: MultiExit, before: dict[str, float], after: dict[str, float], rows: str) -> Table:
    """Losses at each exit before and after, and what each costs."""
    columns = ("layers", "parameters", "words before", "after", "same place before", "after")
    cells = []
    for layer in model.exits:
        size = sum(p.numel() for p in model.at_exit(layer).parameters())
        names = (f"words.{layer}", f"same.{layer}")
        cells.append((layer, size, *(side[name] for name in names for side in (before, after))))
    return Table(f"Exits on {rows}", columns, cells, "Nats per masked word, and per row; chance is 0.693 for a row.")
