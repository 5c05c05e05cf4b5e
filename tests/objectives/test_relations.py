"""The relation objective: which layer, which pair, which mean."""

import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.losses.relation import relation_kl
from limbeck.objectives.relations import layer_of, relation

NOW = Clock(0, 1)
DATA = {"mask": torch.tensor([[True, True, True, False], [True, False, False, False]])}


def signals(*layers, heads=2, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Signals(qkv={n: tuple(torch.randn(2, heads, 4, width, generator=generator) for _ in "qkv") for n in layers})


@pytest.mark.parametrize(("first", "second", "a", "b"), [("q", "k", 0, 1), ("v", "v", 2, 2), ("k", "q", 1, 0)])
@pytest.mark.parametrize("heads", [None, 3])
def test_compares_the_pair_that_was_named(first, second, a, b, heads):
    student, teacher = signals(2), signals(4, width=9, seed=1)
    terms = relation(first, second, heads=heads)(student, teacher, DATA, NOW)
    s, t = student.qkv[2], teacher.qkv[4]
    expected = relation_kl((s[a], s[b]), (t[a], t[b]), DATA["mask"], heads=heads)
    torch.testing.assert_close(terms["relation"].sum, expected.sum())
    assert terms["relation"].unit == "row"  # the row of one token counts, with 0
    assert expected[1] == 0


def test_causal_is_handed_on():
    student, teacher = signals(1), signals(1, seed=1)
    full, causal = (relation(causal=c)(student, teacher, DATA, NOW)["relation"].sum for c in (False, True))
    assert full != causal


def test_layers_by_number_from_the_end_or_the_only_one():
    source = signals(2, 5)
    assert layer_of(source, "qkv", 2) is source.qkv[2]
    assert layer_of(source, "qkv", -1) is source.qkv[5]
    assert layer_of(source, "qkv", -2) is source.qkv[2]
    assert layer_of(signals(3), "qkv", None)[0].shape == (2, 2, 4, 6)
    for wrong in (None, 3, -3, 0):
        with pytest.raises(LimbeckError, match=r"recorded \[2, 5\]"):
            layer_of(source, "qkv", wrong)
    with pytest.raises(LimbeckError, match="needs the signal 'qkv'"):
        layer_of(Signals(), "qkv", None)


def test_student_equal_to_teacher_gives_zero_and_an_empty_mask_too():
    student, teacher = signals(1), signals(1, seed=1)
    assert relation()(student, student, DATA, NOW)["relation"].sum.abs() < 1e-6
    empty = {"mask": torch.zeros(2, 4, dtype=torch.bool)}
    assert relation()(student, teacher, empty, NOW)["relation"].sum == 0


def test_refuses_unknown_names_and_prints():
    with pytest.raises(LimbeckError, match="expected one of q, k, v"):
        relation("query", "k")
    assert repr(relation("v", "v", heads=48)) == "relation('v', 'v', heads=48)"
