"""Clipped KL against a plain re-statement in float64."""

import math

import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.losses.clipped import clipped_kl, guard, thresholds
from limbeck.losses.divergence import forward_kl


def logits(seed: int, n: int = 6, v: int = 32) -> torch.Tensor:
    return 2 * torch.randn(n, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(low: float, high: float, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((n,), low, dtype=torch.float64), torch.full((n,), high, dtype=torch.float64)


def reference(student, teacher, low, high, always, softness):
    """One position, in Python: ladder, levels, soft weights, renormalised KL."""
    p = [value - max(teacher) for value in teacher]
    p = [value - math.log(sum(map(math.exp, p))) for value in p]
    q = [value - math.log(sum(map(math.exp, student))) for value in student]
    rising = sorted(p)
    ladder = [rising[0] - 40 * softness, *rising, rising[-1] + 40 * softness]

    def at(level):
        place = level * (len(ladder) - 1)
        below = min(int(place), len(ladder) - 2)
        return ladder[below] + (place - below) * (ladder[below + 1] - ladder[below])

    def sigmoid(x):
        return 1 / (1 + math.exp(-x)) if x > -700 else 0.0

    weights = [sigmoid((x - at(low)) / softness) * sigmoid((at(high) - x) / softness) for x in p]
    if always is not None:
        weights[always] = 1.0
    kept_p = [w * math.exp(x) for w, x in zip(weights, p, strict=True)]
    kept_q = [w * math.exp(x) for w, x in zip(weights, q, strict=True)]
    a, b = sum(kept_p), sum(kept_q)
    kl = sum(x / a * math.log((x / a) / (y / b)) for x, y in zip(kept_p, kept_q, strict=True) if x)
    return kl, a


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.9), (0.5, 1.0), (0.33, 0.66), (0.0, 0.4)])
@pytest.mark.parametrize("always", [None, 7])
def test_it_is_the_kl_between_two_levels(low, high, always):
    student, teacher = logits(0), logits(1)
    kept = None if always is None else torch.full((6,), always)
    values, mass = clipped_kl(student, teacher, *levels(low, high), kept)
    for i in range(6):
        kl, a = reference(student[i].tolist(), teacher[i].tolist(), low, high, always, 0.1)
        assert values[i].item() == pytest.approx(kl, rel=1e-9, abs=1e-12)
        assert mass[i].item() == pytest.approx(a, rel=1e-9)


def test_levels_zero_and_one_are_forward_kl():
    student, teacher = logits(0), logits(1)
    values, mass = clipped_kl(student, teacher, *levels(0.0, 1.0))
    torch.testing.assert_close(values, forward_kl(student, teacher), atol=1e-13, rtol=1e-13)
    torch.testing.assert_close(mass, torch.ones(6, dtype=torch.float64))


def test_equal_sides_are_at_distance_zero_whatever_is_kept():
    values, _ = clipped_kl(logits(0), logits(0), *levels(0.2, 0.7))
    assert values.abs().max() < 1e-12


def test_gradients_reach_the_student_and_both_levels():
    student, teacher = logits(0), logits(1)
    low, high = (level.requires_grad_() for level in levels(0.31, 0.87))
    assert torch.autograd.gradcheck(
        lambda s, a, b: clipped_kl(s, teacher, a, b, torch.full((6,), 3))[0], (student.requires_grad_(), low, high)
    )
    clipped_kl(student, teacher, low, high)[0].sum().backward()
    assert low.grad.abs().min() > 0
    assert high.grad.abs().min() > 0


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.05), (0.9, 0.95), (0.5, 0.5), (0.97, 1.0)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_the_least_mass_is_kept_whatever_the_levels_say(low, high, scale):
    student, teacher = logits(0), scale * logits(1)
    for least in (0.3, 0.5, 0.9):
        _, mass = clipped_kl(student, teacher, *levels(low, high), least=least)
        assert mass.min() >= least - 1e-3


def test_the_guard_names_the_classes_that_hold_the_mass():
    top = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.24, 0.24, 0.26 - 1e-3, 0.26 + 1e-3]]).sort(-1, descending=True).values
    lower, upper = guard(top.log(), 0.5)  # a quarter may go at either end
    # first row: cutting 0.4 off would be too much, 0.4 + 0.3 is not enough; second: neither of the largest may go
    assert lower.exp().tolist() == pytest.approx([0.2, 0.24])
    assert upper.exp().tolist() == pytest.approx([0.4, 0.261])


def test_only_the_largest_values_make_the_levels():
    top = torch.tensor([[-1.0, -2.0, -4.0]])
    low, high = thresholds(top, torch.tensor([0.5]), torch.tensor([0.75]), edge=10.0)
    assert [low.item(), high.item()] == [-2.0, -1.0]
    student, teacher = logits(0), logits(1)
    _, mass = clipped_kl(student, teacher, *levels(0.0, 1.0), most=4, softness=0.01)
    largest = teacher.softmax(-1).topk(4).values.sum(-1)
    assert (mass >= largest - 1e-6).all()
    assert (mass <= teacher.softmax(-1).topk(9).values.sum(-1)).all()


def test_forbidden_tokens_stay_finite():
    student, teacher = logits(0).float(), logits(1).float()
    student[:, 0] = teacher[:, 1] = -torch.inf
    values, mass = clipped_kl(student, teacher, *(level.float() for level in levels(0.3, 0.9)))
    assert torch.isfinite(values).all()
    assert torch.isfinite(mass).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"softness": 0.0}, "softness above 0"), ({"least": 1.0}, "least share"), ({"most": 1}, "at least two classes")],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(LimbeckError, match=message):
        clipped_kl(logits(0), logits(1), *levels(0.1, 0.9), **settings)
