"""Hidden-state distances: against NumPy, released code, at the edges."""

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.losses.feature import hidden_cosine, hidden_mse

GOLDEN = Path(__file__).parents[1] / "golden"
BOTH = [hidden_mse, hidden_cosine]


def draw(*shape):
    rng = np.random.default_rng(3)
    return rng.normal(size=shape), rng.normal(size=shape)


def test_match_numpy():
    x, y = draw(2, 3, 8)
    np.testing.assert_allclose(
        hidden_mse(torch.tensor(x), torch.tensor(y)).numpy(), ((x - y) ** 2).mean(-1), rtol=1e-13
    )
    cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    np.testing.assert_allclose(hidden_cosine(torch.tensor(x), torch.tensor(y)).numpy(), 1 - cosine, rtol=1e-12)


@pytest.mark.parametrize("function", BOTH)
def test_gradcheck(function):
    x, y = (torch.tensor(z, requires_grad=True) for z in draw(3, 5))
    assert torch.autograd.gradcheck(function, (x, y))


@pytest.mark.parametrize("function", BOTH)
def test_equal_inputs_give_zero_and_no_gradient(function):
    y = torch.tensor(draw(4, 16)[0], dtype=torch.float32)
    x = y.clone().requires_grad_()
    values = function(x, y)
    assert values.abs().max() < 1e-6
    assert torch.autograd.grad(values.sum(), x)[0].abs().max() < 1e-6


@pytest.mark.parametrize("function", BOTH)
def test_half_precision_in_float32_out_and_double_stays(function):
    x, y = (torch.tensor(z) for z in draw(4, 16))
    assert function(x.bfloat16(), y.bfloat16()).dtype == torch.float32
    assert function(x, y).dtype == torch.float64


def test_cosine_of_zero_tiny_and_huge_vectors():
    x = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [1e30, 1e30]], requires_grad=True)
    values = hidden_cosine(x, torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
    assert values.tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    gradient = torch.autograd.grad(values.sum(), x)[0]
    assert gradient.isfinite().all()
    assert (gradient[0] == 0).all()


@pytest.mark.parametrize("function", BOTH)
def test_no_positions(function):
    assert function(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize("function", BOTH)
def test_refuses_shapes_that_only_broadcast(function):
    for other in (torch.ones(1, 4), torch.ones(3, 1), torch.ones(3, 8)):
        with pytest.raises(LimbeckError, match="projection"):
            function(torch.ones(3, 4), other)


def test_golden_liger_cosine():
    data = dict(np.load(GOLDEN / "kd-objectives-anchors" / "liger_cosine.npz"))
    valid = data["in_labels"] != -100
    logits = []
    for side in ("student", "teacher"):
        hidden, weight = (torch.tensor(data[f"in_{side}_{name}"]) for name in ("hidden", "weight"))
        logits.append((hidden[valid] @ weight.T, torch.tensor(data[f"in_{side}_bias"])))
    soft = [float(hidden_cosine(*(z + b * config[-1] for z, b in logits)).mean()) for config in data["hp_configs"]]
    np.testing.assert_allclose(soft, data["fix_soft"], rtol=2e-6)
