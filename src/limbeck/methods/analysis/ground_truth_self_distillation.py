"""Self-distillation with the truth: how much of it each generation needs, by closed form and by networks.

Paper:      Borup and Andersen, "Even your Teacher Needs Guidance", NeurIPS 2021, arXiv 2102.13088.
Says:       fitted again and again to its own predictions alone, kernel ridge regression fades away. With a share alpha
            of the truth it converges to ridge regression with ridge / alpha. The best alpha of a step has a closed
            form, and for networks it costs one more training to estimate.
Parts:      analyses.kernel_ridge | data.table | losses.feature | core.fit
Needs:      a table of numbers with a column to predict, or texts and an encoder. Signals: logits. Batch: truth.
Departures: features are standardised and targets centred. Networks decay their weights in the place of the released
            penalty, 1e-4 of the parameters' norms, and every generation is judged on rows apart; the released code
            validates on the test set. The successor for Gaussian processes is not here.
Checked:    released notebook to 1e-10: predictions, shrinkage and limits at constant weights, its losses; per-step
            weights, greedy best weights; the released loss of networks without its penalty.
Claim:      claims/ground_truth_self_distillation.py, confirmed on a noisy sine and on MNIST with wrong labels: without
            the truth the error turns up after its least, with alpha 0.35 it stays within 8 % of it for ever. Networks
            with the estimated weight are a point above training on the truth again, in each of three seeds; seeds
            differ by more than that, and networks that only imitate are level with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.analyses.kernel_ridge import mixing_weight
from limbeck.atlas.digits import digits
from limbeck.core.batch import Batch, to_device
from limbeck.core.check import require
from limbeck.core.fit import fit
from limbeck.core.save import save_tensors
from limbeck.core.signals import Signals, Source
from limbeck.core.stage import Objective, Optim, Stage, distill_step, stage_settings
from limbeck.core.terms import Clock, Terms, per
from limbeck.data.table import (
    Predicted,
    Table,
    parted,
    plain_batches,
    read_table,
    relabelled,
    scale_of,
    standardised,
    table_batches,
)
from limbeck.evaluation.model import positions
from limbeck.losses.divergence import upcast
from limbeck.losses.feature import hidden_mse
from limbeck.methods.analysis.fitted_to_itself import accuracy, by_kernel, error, kernel_model
from limbeck.models.load import load_model
from limbeck.objectives.named import named
from limbeck.report.sections import Table as Shown
from limbeck.run import Run, begin, seed_all
from limbeck.sources.model import model_source

LENGTH = 128
"""Tokens of a text that an encoder reads, if it has so many positions."""


@dataclass(frozen=True)
class Config(Run):
    """Settings of ``limbeck ground_truth_self_distillation``."""

    out: Path = Path("runs/ground_truth_self_distillation")
    """Folder that the run writes: report, best kernel predictor, last network, and the scale that both need."""
    data: str | None = None
    """csv, tsv, jsonl or parquet: columns of numbers, or one of text, and one to predict. By default the atlas's
    handwritten digits."""
    target: str | None = None
    """The column to predict; by default the first there is of label, target, score, y."""
    predict: Predicted = "auto"
    """class or number; auto: a class where targets are text or a few whole numbers."""
    encoder: str = "limbeck:atlas/weights/encoder-a"
    """What turns texts into numbers (the mean of its last states): a folder or Hub id."""
    noise: float | None = None
    """Share of the training labels that are made wrong; by default 0.3 for the atlas, none for one's own data."""
    rows: int | None = None
    """Rows to train on at most: the kernel's cost is their number cubed. By default 300 of the atlas's and 2,000 of
    one's own."""
    ridge: float = 0.2
    """The penalty lambda; paper's example: 0.2."""
    gamma: float | None = None
    """Of the kernel exp(-gamma |x - y|^2); paper's example: 80 on [0, 1]. By default 1 / number of columns."""
    alphas: tuple[float, ...] = (0.0, 0.25, 0.35, 0.5)
    """Constant weights of the truth to compare with the best one of each step; paper's example: 0, 0.25, 0.35."""
    fits: int = 6
    """Steps of kernel ridge regression; paper's example."""
    generations: int = 3
    """Networks in a row, each taught by the one before it; paper: 5. 1: none is taught."""
    alpha: float | None = None
    """Weight of the truth for networks; by default estimated for each generation at the cost of one more training."""
    width: int = 64
    """Units in each of the two hidden layers; ours."""
    steps: int = 400
    """Optimizer steps per network; paper: 75 epochs."""
    batch: int = 32
    """Rows per batch; paper: 16."""
    lr: float = 1e-3
    """Learning rate; the released command line's default."""
    weight_decay: float = 1e-2
    """Decoupled weight decay, in the place of the penalty; ours."""


class Generation(NamedTuple):
    """One network of the row, the weight of the truth it learned with, and the network that imitates only, if any."""

    alpha: float
    network: nn.Module
    imitator: nn.Module | None = None


def mixture(alpha: float, classes: bool = True) -> Objective:
    """alpha * |f - truth|^2 + (1 - alpha) * |f - teacher|^2, means over outputs and rows; f is a softmax for classes.

    Terms: ``truth`` and, where alpha is below 1, ``self``. The batch gives ``truth`` b c.
    """
    require(0 <= alpha <= 1, f"--alpha {alpha}: expected a weight of the truth from 0 to 1")

    @named("mixture", alpha, classes=classes)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        said = told(student, classes)
        terms = per("row", hidden_mse(said, batch["truth"].to(said.dtype)), "truth", alpha)
        if alpha < 1:
            terms |= per("row", hidden_mse(said, told(teacher, classes)), "self", 1 - alpha)
        return Terms(terms)

    return objective


def told(signals: Signals, classes: bool) -> Tensor:
    """What a source predicts, b c: probabilities or numbers."""
    logits = upcast(signals.need("logits"))
    return logits.softmax(-1) if classes else logits


def ground_truth_self_distillation(
    anew: Callable[[int], nn.Module],
    stream: Iterable[Batch],
    held: Sequence[Batch],
    cfg: Config,
    classes: bool = True,
    says: Callable[[Any], Source] = model_source,
    out: Path | None = None,
    engine: Any = None,
) -> list[Generation]:
    """A row of networks, ``anew(seed)`` each; the first learns the truth, the others a mixture with the one before.

    ``held`` are the rows that the weight of the truth is estimated on: formula and cost as in
    ``analyses.kernel_ridge.mixing_weight``, for which one more network only imitates. ``says`` turns a network into a
    source; ``out`` and ``engine`` go to ``fit``.
    """
    truth = torch.cat([batch["truth"] for batch in held]).double()

    def taught(name: str, number: int, teacher: nn.Module | None, alpha: float) -> tuple[nn.Module, Tensor]:
        seed_all(cfg.seed + number)
        network = anew(cfg.seed + number)
        fit(_stage(name, network, teacher, stream, alpha, classes, says, cfg), out, engine)
        return network, predicted(network, held, classes, says)

    last, first = taught("generation-1", 1, None, 1.0)
    found = [Generation(1.0, last)]
    for number in range(2, cfg.generations + 1):
        alpha, imitator = cfg.alpha, None
        if alpha is None:
            imitator, imitated = taught(f"imitation-{number}", number, last, 0.0)
            alpha = min(max(mixing_weight(first, imitated, truth)[0], 0.0), 1.0)
        last, _ = taught(f"generation-{number}", number, last, alpha)
        found.append(Generation(alpha, last, imitator))
    return found


@torch.no_grad()
def predicted(network: nn.Module, rows: Iterable[Batch], classes: bool, says: Callable[[Any], Source]) -> Tensor:
    """What ``network`` predicts for ``rows``: n c, float64, on the CPU."""
    device, source = next(network.parameters()).device, says(network)
    return torch.cat([told(source(to_device(batch, device)), classes).double().cpu() for batch in rows])


def reads(network: nn.Module) -> Source:
    """A network of plain numbers as a source."""
    return lambda batch: Signals(logits=network(batch["values"]))


def perceptron(inputs: int, width: int, outputs: int) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


def main(cfg: Config) -> Path:
    """Distil predictors of ``cfg.data`` from themselves; writes tables, curves and the best ones to ``cfg.out``."""
    for alpha in (*cfg.alphas, *([] if cfg.alpha is None else [cfg.alpha])):
        mixture(alpha)  # refuses what is no weight
    require(cfg.fits >= 1 and cfg.generations >= 1, "--fits and --generations: expected at least 1 of each")
    require(cfg.width >= 1, f"--width {cfg.width}: expected at least 1")
    seed_all(cfg.seed)
    raw = numbers_of(cfg)
    scale = scale_of(raw[0])
    train, held, test = sets = standardised(raw, scale)
    model = kernel_model(train, cfg)
    run = begin(cfg, "ground_truth_self_distillation")
    save_tensors(run.out / "scale.safetensors", scale._asdict(), {"classes": json.dumps(train.classes or [])})
    found, tables = by_kernel(model, held, test, cfg, run.out)
    networks, table = by_networks(train, held, test, cfg, run)
    facts = {"rows": [len(part.truth) for part in sets], "classes": train.classes or []}
    return run.finish(metrics={**facts, "kernel": found, "networks": networks}, sections=[*tables, table])


def sets_of(cfg: Config) -> list[Table]:
    """``numbers_of`` ``cfg``, standardised."""
    return standardised(numbers_of(cfg))


def numbers_of(cfg: Config) -> list[Table]:
    """Rows to train on, to choose weights by and to judge by, as numbers; wrong labels among the first."""
    if cfg.data is None:
        found = [_digits(split, cfg.seed) for split in ("train", "dev", "test")]
    else:
        found = parted(read_table(cfg.data, cfg.target, cfg.predict), seed=cfg.seed)
    noise = (0.3 if cfg.data is None else 0.0) if cfg.noise is None else cfg.noise
    require(not noise or found[0].classes, f"--noise {noise}: makes labels wrong, but the target is a number")
    most = (300 if cfg.data is None else 2000) if cfg.rows is None else cfg.rows
    require(most >= 2, f"--rows {most}: expected 2 or more")
    train = found[0].at(range(min(most, len(found[0].truth))))
    train = train._replace(truth=relabelled(train.truth, noise, cfg.seed)) if noise else train
    whole = [train, *found[1:]]
    return whole if train.texts is None else _embedded(whole, cfg)


def by_networks(train: Table, held: Table, test: Table, cfg: Config, run: Any) -> tuple[list[dict[str, Any]], Shown]:
    """The row of networks, each judged beside the one that only imitates; the last is saved."""
    classes, wide = train.classes is not None, (train.numbers.shape[1], cfg.width, train.truth.shape[1])
    near, far = (list(table_batches(part.numbers, part.truth, len(part.truth)).take(1)) for part in (held, test))
    stream = table_batches(train.numbers, train.truth, cfg.batch, cfg.seed)
    made = ground_truth_self_distillation(
        lambda seed: perceptron(*wide), stream, near, cfg, classes, reads, run.stage_dir, run.accelerator
    )
    truth = test._replace(truth=far[0]["truth"].double())
    found, rows = [], []
    for number, one in enumerate(made, 1):
        for name, alpha, network in (("", one.alpha, one.network), (", imitating only", 0.0, one.imitator)):
            if network is not None:
                said = predicted(network, far, classes, reads)
                seen: dict[str, Any] = {"generation": number, "alpha": alpha, "error": error(said, truth)}
                seen |= {"accuracy": accuracy(said, truth)} if classes else {}
                found.append(seen)
                rows.append([f"{number}{name}", *(seen[key] for key in seen if key != "generation")])
    save_tensors(run.out / "network.safetensors", dict(made[-1].network.state_dict()), {})
    columns = ("generation", "weight of the truth", "error", *(["accuracy"] if classes else []))
    return found, Shown(
        "Networks, each taught by the one before", columns, rows, "The first learns the truth alone.", 4
    )


def _digits(split: str, seed: int) -> Table:
    images, labels = digits(split)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    names = [str(digit) for digit in range(10)]
    return Table(images.flatten(1).double(), None, torch.eye(10, dtype=torch.float64)[labels], names).at(order)


@torch.no_grad()
def _embedded(tables: list[Table], cfg: Config) -> list[Table]:
    """Texts as numbers: the mean of the encoder's last states."""
    model, tokenizer = load_model(cfg.encoder, "base")
    source = model_source(model, pooled="mean")
    made = []
    for table in tables:
        batches = plain_batches(table.texts or [], tokenizer, length=min(LENGTH, positions(model) or LENGTH))
        values = torch.cat([source(batch).need("pooled") for batch in batches])
        made.append(table._replace(values=values.double(), texts=None))
    return made


def _stage(
    name: str,
    network: nn.Module,
    teacher: nn.Module | None,
    stream: Iterable[Batch],
    alpha: float,
    classes: bool,
    says: Callable[[Any], Source],
    cfg: Config,
) -> Stage:
    silent: Source = lambda batch: Signals()  # noqa: E731
    return Stage(
        name,
        distill_step(says(network), silent if teacher is None else says(teacher), mixture(alpha, classes)),
        train={"network": network},
        stream=stream,
        steps=cfg.steps,
        optim=Optim(cfg.lr, "constant", weight_decay=cfg.weight_decay),
        frozen={} if teacher is None else {"teacher": teacher},
        **stage_settings(cfg),
    )
