"""Hidden states and pooled vectors: layers, projections, means."""

import pytest
import torch
from torch import nn

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.losses.feature import hidden_cosine, hidden_mse
from limbeck.objectives.features import hidden, pooled

NOW = Clock(0, 1)
DATA = {"mask": torch.tensor([[True, True, False], [True, False, False]]), "answer": torch.zeros(2, 3).bool()}


def signals(layers, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = {n: torch.randn(2, 3, width, generator=generator) for n in layers}
    return Signals(hidden=states, pooled=torch.randn(2, width, generator=generator))


@pytest.mark.parametrize(("kind", "loss"), [("mse", hidden_mse), ("cosine", hidden_cosine)])
def test_last_layers_over_real_tokens(kind, loss):
    student, teacher = signals([1, 2]), signals([3, 9], seed=1)
    term = hidden(kind)(student, teacher, DATA, NOW)["hidden"]
    torch.testing.assert_close(term.sum, loss(student.hidden[2], teacher.hidden[9])[DATA["mask"]].sum())
    assert term.unit == "mask"


def test_pairs_of_layers_are_averaged():
    student, teacher = signals([1, 2]), signals([4, 8], seed=1)
    both = hidden(layers={1: 4, 2: 8})(student, teacher, DATA, NOW)["hidden"].sum
    each = [hidden(layers={s: t})(student, teacher, DATA, NOW)["hidden"].sum for s, t in ((1, 4), (2, 8))]
    torch.testing.assert_close(both, sum(each) / 2)


def test_projection_learns_and_widths_must_fit():
    student, teacher, projection = signals([1]), signals([1], width=6, seed=1), nn.Linear(4, 6)
    hidden("cosine", projection=projection)(student, teacher, DATA, NOW)["hidden"].sum.backward()
    assert projection.weight.grad.abs().sum() > 0
    with pytest.raises(LimbeckError, match="give a projection"):
        hidden()(student, teacher, DATA, NOW)


def test_empty_mask_and_equal_inputs_give_zero():
    student, teacher = signals([1]), signals([1], seed=1)
    assert hidden(on="answer")(student, teacher, DATA, NOW)["hidden"].sum == 0
    for kind in ("mse", "cosine"):
        assert hidden(kind)(student, student, DATA, NOW)["hidden"].sum.abs() < 1e-6
        assert pooled(kind)(student, student, DATA, NOW)["pooled"].sum.abs() < 1e-6


def test_pooled_is_averaged_over_rows():
    student, teacher = signals([1]), signals([1], seed=1)
    term = pooled("cosine")(student, teacher, DATA, NOW)["pooled"]
    torch.testing.assert_close(term.sum, hidden_cosine(student.pooled, teacher.pooled).sum())
    assert term.unit == "row"
    with pytest.raises(LimbeckError, match="'pooled'"):
        pooled()(student, Signals(), DATA, NOW)


def test_refuses_an_unknown_kind_and_prints():
    with pytest.raises(LimbeckError, match="did you mean 'cosine'"):
        hidden("cosin")
    assert repr(hidden("mse", {1: 2}, nn.Linear(2, 3))) == "hidden('mse', layers={1: 2}, projection=Linear, on='mask')"
