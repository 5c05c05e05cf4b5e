"""Self-distilled kernel ridge regression: the authors' notebook, the closed forms against refits, optimal weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.analyses import kernel_ridge
from limbeck.analyses.kernel_ridge import KernelRidge, mixing_weight, rbf
from limbeck.core.check import LimbeckError

GOLDEN = Path(__file__).parents[1] / "golden" / "groundtruth-self-distillation-krr"
EXACT = {"rtol": 0, "atol": 1e-10}


def golden(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.as_tensor(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}


def fitted(case: dict[str, torch.Tensor], flat: bool = False) -> tuple[KernelRidge, torch.Tensor]:
    gamma, points = float(case["hp_rbf_gamma"]), case["in_X"]
    others = case["in_x_test"] if "in_x_test" in case else case["in_X_val"]
    targets = case["in_Y"][:, 0] if flat else case["in_Y"]
    model = KernelRidge(rbf(points, points, gamma), targets, float(case["hp_lambda"]))
    return model, rbf(others, points, gamma)


def test_golden_constant_weights():
    case = golden("krr")
    model, cross = fitted(case)
    for number, alpha in enumerate(case["hp_alphas"].tolist()):
        alphas = [alpha] * int(case["hp_steps"])
        torch.testing.assert_close(model.predict(cross, alphas), case["out_pred"][number], **EXACT)
        torch.testing.assert_close(model.fitted(alphas), case["out_train_pred"][number], **EXACT)
        torch.testing.assert_close(model.predict_limit(cross, alpha), case["out_limit"][number], **EXACT)
        falling = model.shrinkage(alphas).flip(-1)  # the authors' eigenvalues fall
        torch.testing.assert_close(falling, case["out_B_diag"][number], **EXACT)
        torch.testing.assert_close(model.limit(alpha).flip(-1), case["out_B_limit_diag"][number], **EXACT)


def test_golden_the_notebooks_own_points():
    case = golden("notebook")
    model, cross = fitted(case, flat=True)
    truth = torch.sin(2 * torch.pi * case["in_x_test"][:, 0])
    for number, alpha in enumerate(case["hp_alphas"].tolist()):
        steps = [*model.predict(cross, [alpha] * int(case["hp_steps"])), model.predict_limit(cross, alpha)]
        losses = torch.stack([(said - truth).square().mean() for said in steps])
        torch.testing.assert_close(losses, case["out_loss"][number], **EXACT)


def test_golden_a_weight_for_each_step_and_the_best_ones():
    case = golden("per_step_alpha")
    model, cross = fitted(case)
    alphas = case["hp_alphas"].tolist()
    torch.testing.assert_close(model.predict(cross, alphas), case["ref_val_pred"], **EXACT)
    torch.testing.assert_close(model.fitted(alphas), case["ref_train_pred"], **EXACT)
    best = model.best(cross, case["in_Y_val"], 6, clip=False)  # the golden steps come after the plain fit
    losses, stars = (torch.tensor(values[1:], dtype=torch.float64) for values in (best.losses, best.alphas))
    torch.testing.assert_close(losses, case["ref_greedy_val_mse"], **EXACT)
    torch.testing.assert_close(stars, case["ref_greedy_alpha_star"], **EXACT)
    assert (best.alphas[0], best.flat) == (1.0, [True, *[False] * 5])


def toy(classes: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    points, others = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (20, 7))
    return points, others, torch.randn(20, classes, generator=generator, dtype=torch.float64)


def test_closed_forms_are_what_refitting_gives():
    points, others, targets = toy()
    kernel, cross, ridge, alphas = rbf(points, points, 0.3), rbf(others, points, 0.3), 0.5, [0.4, 0.0, 0.9]
    model, last = KernelRidge(kernel, targets, ridge), targets
    for step, alpha in enumerate(alphas):
        dual = torch.linalg.solve(
            kernel + ridge * torch.eye(20, dtype=torch.float64), alpha * targets + (1 - alpha) * last
        )
        last = kernel @ dual
        torch.testing.assert_close(model.coefficients(alphas)[step], dual)
        torch.testing.assert_close(model.predict(cross, alphas)[step], cross @ dual)
        torch.testing.assert_close(model.fitted(alphas)[step], last)


def test_endless_steps_are_a_larger_ridge():
    points, others, targets = toy()
    kernel, cross = rbf(points, points, 0.3), rbf(others, points, 0.3)
    model = KernelRidge(kernel, targets, 0.5)
    long = model.shrinkage([0.25] * 2000)
    torch.testing.assert_close(long[-1], model.limit(0.25), **EXACT)
    torch.testing.assert_close(model.limit(0.25), KernelRidge(kernel, targets, 2.0).plain, **EXACT)
    plain = KernelRidge(kernel, targets, 2.0).predict(cross, [1.0])[0]
    torch.testing.assert_close(model.predict_limit(cross, 0.25), plain, **EXACT)
    rate = (long[3] - model.limit(0.25)) / (long[2] - model.limit(0.25))
    torch.testing.assert_close(rate[-4:], (0.75 * model.plain)[-4:])


def test_the_truth_alone_changes_nothing_and_none_of_it_fades():
    points, _, targets = toy()
    model = KernelRidge(rbf(points, points, 0.3), targets, 0.5)
    whole = model.fitted([1.0] * 4)
    torch.testing.assert_close(whole[3], whole[0])
    none = model.fitted([0.0] * 5).flatten(1).norm(dim=1)
    assert (none[1:] <= none[:-1] * model.plain.max()).all()
    assert (model.limit(0.0) == 0).all()
    torch.testing.assert_close(model.shrinkage([0.0] * 3)[2], model.plain**3)


def test_no_weight_on_a_grid_beats_the_best_one():
    points, others, targets = toy(1)
    model, cross = KernelRidge(rbf(points, points, 0.3), targets, 0.5), rbf(others, points, 0.3)
    truth = others.sin().sum(1, keepdim=True)
    best = model.best(cross, truth, 3, clip=False)
    for step in (1, 2):
        grid = [best.alphas[step] + offset / 1000 for offset in range(-500, 501, 7)]
        ways = [model.predict(cross, [*best.alphas[:step], alpha], free=True)[-1] for alpha in grid]
        assert min(float((way - truth).square().mean()) for way in ways) >= best.losses[step] - 1e-12
    clipped = model.best(cross, truth, 3)
    assert all(0 <= alpha <= 1 for alpha in clipped.alphas)


def test_a_weight_that_makes_no_difference_is_marked():
    same = torch.ones(4)
    assert mixing_weight(same, same, torch.zeros(4)) == (1.0, True)
    assert mixing_weight(2 * same, same, 1.75 * same) == (0.75, False)


def test_a_kernel_that_is_computed_in_parts_is_the_same(monkeypatch):
    points, others, _ = toy()
    whole = rbf(points, others, 0.3)
    monkeypatch.setattr(kernel_ridge, "AT_ONCE", 50)
    assert torch.equal(rbf(points, others, 0.3), whole)
    assert whole[2, 3] == pytest.approx(float(torch.exp(-0.3 * (points[2] - others[3]).square().sum())))


def test_nearly_singular_kernels_stay_finite():
    points = torch.linspace(0, 1, 60, dtype=torch.float64)[:, None]
    model = KernelRidge(rbf(points, points, 0.01), points[:, 0], 1e-10)
    assert torch.isfinite(model.predict(rbf(points + 0.01, points, 0.01), [0.5] * 10)).all()


@pytest.mark.parametrize(
    ("kernel", "targets", "ridge", "match"),
    [
        (torch.eye(3), torch.ones(3), 0.0, "expected a ridge above 0, but got 0.0"),
        (torch.eye(3), torch.ones(4), 1.0, r"the kernel is \(3, 3\), but there are 4 targets"),
        (torch.eye(3), torch.tensor([1.0, float("nan"), 0.0]), 1.0, "have to be finite"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.ones(2), 1.0, "not symmetric"),
        (-torch.eye(3), torch.ones(3), 1.0, "has the eigenvalue -1"),
    ],
)
def test_what_is_refused(kernel, targets, ridge, match):
    with pytest.raises(LimbeckError, match=match):
        KernelRidge(kernel, targets, ridge)


def test_weights_outside_of_0_to_1_are_refused_unless_asked_for():
    model = KernelRidge(torch.eye(3), torch.ones(3), 1.0)
    with pytest.raises(LimbeckError, match=r"weight of the truth from 0 to 1, but got 1\.5"):
        model.fitted([1.0, 1.5])
    with pytest.raises(LimbeckError, match="for at least one step"):
        model.fitted([])
    assert torch.isfinite(model.fitted([1.0, 1.5], free=True)).all()
