"""ModularStarEncoder: one encoder whose every prefix is a smaller model.

Paper:      Gurioli et al., AAAI 2026, arXiv 2503.03008 ("One Model to Train them All", later "MoSE").
Says:       the same losses at several depths, each weighed by its depth, make one checkpoint that can be cut at any of
            them. The deeper exits shape the layers below: that is the self-distillation, there is no teacher.
Parts:      students.exits | objectives (exits, hard) | data.repositories
Needs:      an encoder like BERT or RoBERTa with its masked-word head, and texts that say where they come from.
            Signals: exits. Batch: ids, mask, targets, answer, same.
Departures: any masked language model in the place of StarCoder2 without its causal mask. Exits' vectors start at zero.
            Weights are the paper's, not normalised, so compare rates with a single exit at 1 / their sum. Fine-tuning
            for retrieval, with a projection for each exit, is not here.
Checked:    from the equations (no training code was released): both losses at each exit and their weighted sum; models
            cut at an exit predict what the exit does.
Claim:      claims/modular_encoder.py, against training the last exit alone. Early exits are far better for it (3.95
            against 4.94 nats a word after 1 of 4 layers) and the last pays 1 %; but the first is 4.5 % behind an
            encoder of one layer trained alone, where the paper has exits ahead. Whether texts belong together stayed a
            guess at every exit of every arm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.analyses.measure import measure
from limbeck.atlas.topics import topics
from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.fit import fit
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective, Optim, Stage, distill_step
from limbeck.data.held import hold_out
from limbeck.data.repositories import place_batches, read_places
from limbeck.models.load import load_model
from limbeck.objectives.exits import at_exits, belongs_together, depth_shares
from limbeck.objectives.tokens import hard
from limbeck.objectives.weighted import weighted
from limbeck.report.sections import Table
from limbeck.run import Run, begin, save_artefact, seed_all
from limbeck.students.exits import MultiExit, even_exits
from limbeck.students.layers import parse_size, smaller


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck modular_encoder``."""

    out: Path = Path("runs/modular_encoder")
    """Folder that the run writes: the whole model, and one folder exit-<layers> for each smaller one."""
    model: str = "limbeck:atlas/weights/encoder-a"
    """Folder or Hub id of a masked language model; by default an encoder that ships with limbeck."""
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
    steps: int = 200
    """Optimizer steps; paper: 245,000. 200 suit the atlas."""
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
        "exits",
        distill_step(lambda batch: model(batch), lambda batch: Signals(), goal),
        train={"model": model},
        stream=stream,
        steps=cfg.steps,
        optim=Optim(cfg.lr, "linear", cfg.warmup, (0.9, 0.95), cfg.weight_decay, 1e-6),
        accumulate=cfg.accumulate,
        seed=cfg.seed,
        save_every=cfg.save_every,
    )
    return fit(stage, out, engine)


def main(cfg: Config) -> Path:
    """Train exits into ``cfg.model`` on ``cfg.data``; writes the model, its smaller ones and a report."""
    seed_all(cfg.seed)
    whole, tokenizer = load_model(cfg.model, "masked")
    if cfg.size is not None:
        size = parse_size(cfg.size)
        require(size, f"--size {cfg.size}: expected layers and width, such as 6x384")
        whole = smaller(whole, *(size or (0, 0)))
    layers = whole.config.num_hidden_layers
    model = MultiExit(whole, cfg.exits or even_exits(layers, min(4, layers)))
    compare = distill_step(lambda batch: model(batch), lambda batch: Signals(), exit_loss(model.exits, layers))
    exit_loss(model.exits, layers, cfg.weight_words, cfg.weight_same)  # refuses weights that make no sense
    rows = cfg.batch * min(cfg.steps, 200) + 4 * cfg.batch
    split = hold_out(place_batches(_places(cfg), tokenizer, cfg.length, cfg.batch, rows, cfg.texts, cfg.seed))
    run = begin(cfg, "modular_encoder")
    device = run.accelerator.device
    before = measure(compare, _eval(model.to(device), split.on(device)))
    said = modular_encoder(model, split.stream, cfg, run.stage_dir, run.accelerator)
    after = measure(compare, _eval(model.to(device), split.on(device)))
    for layer in model.exits[:-1]:
        small = run.out / f"exit-{layer}"
        small.mkdir(exist_ok=True)
        for part in (model.at_exit(layer), tokenizer):
            save_artefact(part, small)
    save_artefact(model, run.out)
    table = _table(model, before, after, split.rows)
    metrics = {**said, split.name: after, "before": before}
    return run.finish(model.at_exit(model.exits[-1]), tokenizer, metrics, [table])


def _eval(model: MultiExit, batches: list[Batch]) -> list[Batch]:
    model.eval()
    return batches


def _places(cfg: Config) -> dict[str, list[str]]:
    if cfg.data is not None:
        return read_places(cfg.data)
    places: dict[str, list[str]] = {}
    for row in topics("en", 2000, cfg.seed):
        places.setdefault(row["label"], []).append(row["text"])
    return places


def _table(model: MultiExit, before: dict[str, float], after: dict[str, float], rows: str) -> Table:
    """Losses at each exit before and after, and what each costs."""
    columns = ("layers", "parameters", "words before", "after", "same place before", "after")
    cells = []
    for layer in model.exits:
        size = sum(p.numel() for p in model.at_exit(layer).parameters())
        names = (f"words.{layer}", f"same.{layer}")
        cells.append((layer, size, *(side[name] for name in names for side in (before, after))))
    return Table(f"Exits on {rows}", columns, cells, "Nats per masked word, and per row; chance is 0.693 for a row.")
