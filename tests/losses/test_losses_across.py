"""Divergences across vocabularies: golden values of Universal Logit Distillation, references, limits."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.losses.across import binary_kl, squared_gap, uld

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "kd-objectives-anchors" / "uld.npz")


@pytest.mark.parametrize("number", range(len(GOLDEN["hp_configs"])))
def test_uld_is_the_released_one(number):
    """The released loss pairs answers by order, sums over ranks, means over a row's places and then over rows."""
    degrees_s, degrees_t, no_end_s, no_end_t, _, weight = GOLDEN["hp_configs"][number]
    rows = []
    for i in range(2):
        sides = []
        for side, degrees, no_end in (("student", degrees_s, no_end_s), ("teacher", degrees_t, no_end_t)):
            answer = np.flatnonzero(GOLDEN[f"in_{side}_labels"][i] != -100)
            predict = answer[: len(answer) - int(no_end)] - 1
            sides.append(torch.from_numpy(GOLDEN[f"in_{side}_logits"][i][predict]) / float(degrees))
        most = min(map(len, sides))
        rows.append(uld(sides[0][:most], sides[1][:most]).mean())
    assert weight * float(sum(rows) / 2) == pytest.approx(float(GOLDEN["ref_uld"][number]), rel=2e-6)


def test_uld_against_numpy():
    student, teacher = torch.randn(3, 4, 7), torch.randn(3, 4, 11)
    q, p = (np.exp(x.double().numpy() / 1.5) for x in (student, teacher))
    q, p = (np.sort(x / x.sum(-1, keepdims=True))[..., ::-1] for x in (q, p))
    expected = np.abs(np.pad(q, [(0, 0), (0, 0), (0, 4)]) - p).sum(-1)
    np.testing.assert_allclose(uld(student, teacher, 1.5), expected, rtol=1e-5)
    np.testing.assert_allclose(uld(teacher, student, 1.5), expected, rtol=1e-5)


def test_uld_does_not_know_what_tokens_are():
    logits = torch.randn(5, 9)
    assert uld(logits, logits[:, torch.randperm(9)]).abs().max() < 1e-6
    assert uld(logits, logits).max() == 0
    sure, unsure = torch.tensor([[50.0] + [0.0] * 1000]), torch.zeros(1, 1001)
    assert float(uld(sure, unsure)) == pytest.approx(2 * 1000 / 1001)


def test_gradients():
    student = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: uld(s, teacher, 2.0), student)
    logs = (-torch.rand(5, dtype=torch.float64) * 3 - 0.01).requires_grad_()
    other = -torch.rand(5, dtype=torch.float64) * 3 - 0.01
    for loss in (binary_kl, squared_gap):
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(s, other, 1.3), logs)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
def test_binary_kl_against_float64(temperature):
    q, p = torch.tensor([0.9, 0.2, 1e-5, 0.5]), torch.tensor([0.3, 0.2, 0.6, 1e-6])
    found = binary_kl(q.log(), p.log(), temperature)
    q, p = q.double() ** (1 / temperature), p.double() ** (1 / temperature)
    torch.testing.assert_close(
        found.double(), p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log(), rtol=2e-3, atol=1e-7
    )


def test_binary_kl_is_a_divergence_and_finite():
    logs = torch.tensor([0.0, -1e-7, -0.5, -40.0, -3000.0])
    assert binary_kl(logs, logs).abs().max() == 0
    values = binary_kl(logs[:, None].expand(5, 5), logs[None].expand(5, 5))
    assert values.isfinite().all()
    assert (values >= -1e-6).all()
    student = torch.full((1,), -80.0, requires_grad=True)
    binary_kl(student, torch.zeros(1)).sum().backward()
    assert student.grad is not None
    assert float(student.grad[0]) == pytest.approx(-1.0, abs=1e-5)


def test_squared_gap():
    assert float(squared_gap(torch.tensor(-1.0), torch.tensor(-4.0), 2.0)) == pytest.approx(2.25)
    assert float(squared_gap(torch.tensor(-math.pi), torch.tensor(-math.pi))) == 0


def test_refusals():
    with pytest.raises(LimbeckError, match=r"\(2, 5\) and teacher \(3, 5\) must have the same places"):
        uld(torch.zeros(2, 5), torch.zeros(3, 5))
    with pytest.raises(LimbeckError, match="must hold the same spans"):
        binary_kl(torch.zeros(2), torch.zeros(3))
    for loss in (uld, binary_kl, squared_gap):
        with pytest.raises(LimbeckError, match="temperature must be positive, but got 0"):
            loss(torch.zeros(2, 2), torch.zeros(2, 2), 0.0)
