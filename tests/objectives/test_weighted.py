"""Objectives put together: names, units, schedules, members of an ensemble."""

import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock, Term, Terms
from limbeck.objectives.features import pooled
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import over_members, weighted


def fixed(value, unit="row", name="inner"):
    return lambda student, teacher, batch, clock: Terms({name: Term(torch.tensor(value), unit)})


def test_names_raw_sums_units_and_weights():
    goal = weighted(a=(2.0, fixed(3.0)), b=(lambda clock: clock.fraction, fixed(5.0, "batch")))
    terms = goal(Signals(), Signals(), {}, Clock(1, 4))
    assert terms == {"a": Term(torch.tensor(3.0), "row", 2.0), "b": Term(torch.tensor(5.0), "batch", 0.25)}
    assert terms.total({"row": 2, "batch": 1}).item() == pytest.approx(2 * 3 / 2 + 0.25 * 5)


def test_nested_terms_keep_their_names_and_multiply_their_weights():
    inner = weighted(x=(3.0, fixed(1.0)), y=(5.0, fixed(1.0)))
    terms = weighted(all=(2.0, inner), one=(1.0, fixed(1.0)))(Signals(), Signals(), {}, Clock(0, 1))
    assert {name: term.weight for name, term in terms.items()} == {"all.x": 6.0, "all.y": 10.0, "one": 1.0}


def test_prints_as_it_was_called():
    goal = weighted(kl=(1.0, soft()), ce=(0.5, hard()))
    assert (
        repr(goal) == "weighted(kl=(1.0, soft(forward_kl, temperature=1.0, on='answer')), ce=(0.5, hard(on='answer')))"
    )


def test_refuses_nothing():
    with pytest.raises(LimbeckError, match="at least one"):
        weighted()


def test_mean_over_members():
    voices = [Signals(pooled=torch.randn(3, 4)) for _ in range(3)]
    student, data = Signals(pooled=torch.randn(3, 4)), {"ids": torch.zeros(3, 1)}
    each = [pooled()(student, voice, data, Clock(0, 1))["pooled"].sum for voice in voices]
    for weights, shares in ((None, [1 / 3] * 3), ([0.5, 0.5, 0.0], [0.5, 0.5, 0.0])):
        got = over_members(pooled(), weights)(student, Signals(members=tuple(voices)), data, Clock(0, 1))
        torch.testing.assert_close(got["pooled"].sum, sum(w * x for w, x in zip(shares, each, strict=True)))
        assert got["pooled"].unit == "row"
    with pytest.raises(LimbeckError, match="2 weights for 3 teachers"):
        over_members(pooled(), [0.5, 0.5])(student, Signals(members=tuple(voices)), data, Clock(0, 1))
    with pytest.raises(LimbeckError, match="members"):
        over_members(pooled())(student, voices[0], data, Clock(0, 1))
