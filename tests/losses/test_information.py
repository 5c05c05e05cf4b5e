"""The bounds against the released code (golden arrays) and where that code goes wrong."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.losses.information import infonce, leave_one_out, mi_alpha, nwj, tuba

GOLDEN = Path(__file__).parents[1] / "golden" / "distiller-mi-alpha"


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"{name}.npz"))


def inputs(case, dtype=torch.float64):
    return (torch.tensor(case[f"in_{name}"], dtype=dtype, requires_grad=True) for name in ("scores", "log_baseline"))


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_bound_and_gradients(index, dtype):
    case = golden("mi_bound")
    scores, base = inputs(case, dtype)
    bound = mi_alpha(scores, base, float(case["hp_alphas"][index])).mean()
    bound.backward()
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(bound.item(), case["out_bound"][index], **close)
    np.testing.assert_allclose(scores.grad, case["out_grad_scores"][index], **close)
    np.testing.assert_allclose(base.grad, case["out_grad_log_baseline"][index], **close)


def test_golden_limits():
    case = golden("mi_bound")
    scores, base = inputs(case)
    np.testing.assert_allclose(leave_one_out(scores).detach(), case["ref_log_loomean"], rtol=1e-9)
    np.testing.assert_allclose(tuba(scores, base).mean().item(), case["ref_tuba"], rtol=1e-9)
    np.testing.assert_allclose(nwj(scores).mean().item(), case["ref_nwj"], rtol=1e-9)
    np.testing.assert_allclose(infonce(scores).mean().item(), case["fix_infonce"], rtol=1e-9)
    torch.testing.assert_close(mi_alpha(scores, base, 0.0), tuba(scores, base))
    other = torch.zeros_like(base)
    torch.testing.assert_close(mi_alpha(scores, base, 1.0), mi_alpha(scores, other, 1.0))  # no baseline left


@pytest.mark.parametrize("index", range(4))
def test_a_critic_that_tells_pairs_apart_gets_the_right_bound_in_float32(index):
    case = golden("mi_bound_dominant_diagonal")
    scores, base = inputs(case, torch.float32)
    bound = mi_alpha(scores, base, float(case["hp_alphas"][index])).mean().item()
    np.testing.assert_allclose(bound, case["fix_bound"][index], rtol=1e-5)
    assert abs(bound - case["bad_bound"][index]) > 0.5


@pytest.mark.parametrize("items", [2, 5])
def test_pairs_told_apart_for_certain_reach_the_ceilings(items):
    scores = torch.zeros(items, items).fill_diagonal_(50.0)
    assert infonce(scores).mean().item() == pytest.approx(math.log(items), abs=1e-5)
    ceiling = math.log(items - 1)  # with the pair left out of its own normaliser, in the mean over i
    assert mi_alpha(scores, torch.zeros(items), 1.0).mean().item() == pytest.approx(ceiling, abs=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_wild_critic_is_finite(alpha):
    scores = torch.full((4, 4), 500.0).fill_diagonal_(-500.0).requires_grad_()
    bound = mi_alpha(scores, torch.zeros(4, requires_grad=True), alpha).mean()
    bound.backward()
    assert torch.isfinite(bound)
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize(
    ("shape", "alpha", "message"),
    [((1, 1), 0.5, "at least 2 items"), ((2, 3), 0.5, "K x K"), ((2, 2), 1.5, "alpha has to lie between 0 and 1")],
)
def test_what_cannot_be_bounded_is_refused(shape, alpha, message):
    with pytest.raises(LimbeckError, match=message):
        mi_alpha(torch.zeros(shape), torch.zeros(shape[0]), alpha)
