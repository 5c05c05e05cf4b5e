"""The part of ``limbeck ground_truth_self_distillation`` that has closed forms, on tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from limbeck.analyses.kernel_ridge import KernelRidge, rbf
from limbeck.core.save import save_tensors
from limbeck.data.table import Table
from limbeck.report.sections import Cell, Curve
from limbeck.report.sections import Table as Shown

BEST = "best alphas"


class KernelModel(NamedTuple):
    """The fit to itself, and what it takes to predict by it: the points, gamma, and the mean of the targets."""

    ridge: KernelRidge
    points: Tensor
    gamma: float
    middle: Tensor

    def near(self, table: Table) -> Tensor:
        """The kernel of the table's rows with the points."""
        return rbf(table.numbers, self.points, self.gamma)


def kernel_model(train: Table, cfg: Any) -> KernelModel:
    """Kernel ridge regression on ``train``, its targets centred."""
    points, middle = train.numbers, train.truth.mean(0)
    gamma = 1 / points.shape[1] if cfg.gamma is None else cfg.gamma
    return KernelModel(KernelRidge(rbf(points, points, gamma), train.truth - middle, cfg.ridge), points, gamma, middle)


def by_kernel(
    kernel: KernelModel, held: Table, test: Table, cfg: Any, out: Path
) -> tuple[dict[str, Any], list[Curve | Shown]]:
    """Errors of every step at constant weights, in the limit, and at the best weights; the best predictor is saved."""
    model, middle, near, far = kernel.ridge, kernel.middle, kernel.near(held), kernel.near(test)
    greedy = model.best(near, held.truth - middle, cfg.fits)
    ways = {f"alpha {alpha:g}": [alpha] * cfg.fits for alpha in cfg.alphas} | {BEST: greedy.alphas}
    found: dict[str, Any] = {"best_alphas": greedy.alphas}
    for name, alphas in ways.items():
        limits = [model.predict_limit(far, alphas[0])] if name != BEST else []
        said = [*model.predict(far, alphas), *limits]
        found[name] = {"errors": [error(one + middle, test) for one in said[: cfg.fits]]}
        found[name] |= {"limit": error(limits[0] + middle, test)} if limits else {}
        found[name] |= {"accuracies": [accuracy(one + middle, test) for one in said]} if test.classes else {}
    name, step, coefficients = _chosen(model, near, held.truth - middle, ways)
    tensors = {"points": kernel.points, "coefficients": coefficients, "middle": middle}
    save_tensors(out / "kernel.safetensors", tensors, {"gamma": str(kernel.gamma), "weights": name, "step": str(step)})
    return found, _sections(found, cfg.fits, len(test.truth))


def _sections(found: dict[str, Any], fits: int, rows: int) -> list[Curve | Shown]:
    """The errors as a table and as lines."""
    errors: dict[str, list[float]] = {name: one["errors"] for name, one in found.items() if isinstance(one, dict)}
    steps = [float(number) for number in range(1, fits + 1)]
    cells: list[list[Cell]] = [
        [name, seen[0], min(seen), seen.index(min(seen)) + 1, seen[-1], found[name].get("limit")]
        for name, seen in errors.items()
    ]
    columns = ("weight of the truth", "step 1", "least", "at step", f"step {fits}", "limit")
    note = f"Squared error. Best alphas, of each step: {', '.join(f'{alpha:.3f}' for alpha in found['best_alphas'])}."
    curve = Curve(f"Error on {rows} rows apart", {name: (steps, seen) for name, seen in errors.items()})
    return [Shown("Kernel ridge regression, fitted to itself", columns, cells, note, 4), curve]


def error(said: Tensor, table: Table) -> float:
    """Squared error, the mean over rows and outputs."""
    return float((said - table.truth).square().mean())


def accuracy(said: Tensor, table: Table) -> float:
    """Share of rows whose class is right."""
    return float((said.argmax(1) == table.truth.argmax(1)).double().mean())


def _chosen(model: KernelRidge, near: Tensor, truth: Tensor, ways: dict[str, list[float]]) -> tuple[str, int, Tensor]:
    """The way, step and coefficients with the least error on the rows to choose by."""
    errors = {
        (name, step): float((said - truth).square().mean())
        for name, alphas in ways.items()
        for step, said in enumerate(model.predict(near, alphas), 1)
    }
    name, step = min(errors, key=lambda key: errors[key])
    return name, step, model.coefficients(ways[name])[step - 1]
