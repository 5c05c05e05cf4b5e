"""Products of neighbouring distributions, against a plain loop."""

import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.losses.correlation import pair_correlation


def logits(seed: int) -> torch.Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_squared_distance_of_products():
    a, b, c, d = (logits(seed) for seed in range(4))
    found = pair_correlation((a, b), (c, d))
    for i in range(4):
        ours, theirs = (x[i].softmax(-1) * y[i].softmax(-1) for x, y in ((a, b), (c, d)))
        gaps = zip(ours.tolist(), theirs.tolist(), strict=True)
        assert found[i].item() == pytest.approx(sum((o - t) ** 2 for o, t in gaps))


def test_equal_sides_give_zero_and_shapes_are_checked():
    a, b = logits(0), logits(1)
    assert pair_correlation((a, b), (a, b)).abs().max() == 0
    with pytest.raises(LimbeckError, match="must have one shape"):
        pair_correlation((a, b), (a, b[:2]))


def test_small_products_survive_half_precision():
    student = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    teacher = torch.randn(3, 4000, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    found = pair_correlation((student, student), (teacher, teacher))
    assert found.dtype == torch.float32
    assert (found > 0).all()
