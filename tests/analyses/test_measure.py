"""Measuring a step on held-out batches."""

import pytest
import torch

from limbeck.analyses.measure import measure
from limbeck.core.check import LimbeckError
from limbeck.core.terms import Term, Terms


def step(batch, clock):
    values = batch["values"]
    return Terms({"token": Term(values[batch["mask"]].sum(), "mask", 5.0), "row": Term(values.sum(), "row")})


def batch(values, mask):
    return {"values": torch.tensor(values), "mask": torch.tensor(mask)}


def test_terms_are_averaged_over_their_unit_without_weights():
    batches = [batch([[1.0, 2.0]], [[True, False]]), batch([[3.0, 4.0], [5.0, 6.0]], [[True, True], [False, True]])]
    assert measure(step, batches) == {"token": (1 + 3 + 4 + 6) / 4, "row": 21 / 3}


def test_no_gradient_is_kept():
    seen = []

    def learning(batch, clock):
        seen.append(torch.is_grad_enabled())
        return step(batch, clock)

    measure(learning, [batch([[1.0]], [[True]])])
    assert seen == [False]


def test_a_unit_that_never_occurs_gives_zero():
    assert measure(step, [batch([[1.0]], [[False]])])["token"] == 0


def test_nothing_to_measure_on_is_refused():
    with pytest.raises(LimbeckError, match="nothing to measure on"):
        measure(step, [])
