"""Layers against layers: maps, critics and transport plans, against the released code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.losses.feature import hidden_mse
from limbeck.objectives.critics import Critic
from limbeck.objectives.intermediate import Layers, attention, comparison, tokens
from limbeck.objectives.layer_maps import every, last, single, skip, transport

GOLDEN = Path(__file__).parents[1] / "golden" / "distiller-mi-alpha"
START = Clock(0, 1)


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"{name}.npz"))


def test_maps():
    assert skip(3, 12) == [(0, 0), (1, 4), (2, 8), (3, 12)]
    assert skip(5, 12) == [(0, 0), (1, 2), (2, 4), (3, 7), (4, 9), (5, 12)]
    assert last(3, 12) == [(0, 9), (1, 10), (2, 11), (3, 12)]
    assert single(3, 12) == [(3, 12)]
    assert every(1, 2) == [(0, 0), (1, 1), (1, 2)]
    with pytest.raises(LimbeckError, match="a student of 4 layers cannot learn from the last 4 of 3"):
        last(4, 3)


def linear(weight: np.ndarray, bias: np.ndarray | None = None) -> nn.Linear:
    """A layer that computes x @ weight + bias."""
    layer = nn.Linear(*weight.shape, bias=bias is not None)
    layer.weight = nn.Parameter(torch.from_numpy(weight.T.copy()))
    if bias is not None:
        layer.bias = nn.Parameter(torch.from_numpy(np.atleast_1d(bias)))
    return layer


@pytest.mark.parametrize("index", range(5))
def test_golden_critic_and_its_gradient(index):
    case = golden("mi_loss")
    student = nn.Sequential(linear(case["w_s1"], case["w_s1_bias"]), nn.ReLU(), linear(case["w_s2"]))
    teacher = nn.Sequential(linear(case["w_t1"], case["w_t1_bias"]), nn.ReLU(), linear(case["w_t2"]))
    critic = Critic(student, teacher, linear(case["w_baseline"][:, None], case["w_baseline_bias"]))
    states = torch.from_numpy(case["in_state_S"]).requires_grad_()
    goal = Layers(comparison("mi", float(case["hp_alphas"][index])), [(1, 1)], nn.ModuleDict({"shared": critic}))
    batch = {"mask": torch.ones(states.shape[:2], dtype=torch.bool)}
    teacher_says = Signals(hidden={1: torch.from_numpy(case["in_state_T"])})
    loss = goal(Signals(hidden={1: states}), teacher_says, batch, START).total({"row": len(states)})
    loss.backward()
    np.testing.assert_allclose(loss.item(), case["out_loss"][index], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(states.grad, case["out_grad_state_S"][index], rtol=1e-4, atol=1e-6)


def test_golden_plan_and_loss():
    case = golden("emd_mapping")
    reps, theirs = (torch.from_numpy(case[f"in_reps_{side}"]) for side in "ST")
    cost = torch.tensor([[hidden_mse(s, t).mean() for t in theirs[1:]] for s in reps[1:]])
    np.testing.assert_allclose(cost, case["ref_rep_cost"], rtol=1e-5)
    np.testing.assert_allclose(transport(cost), case["ref_rep_plan"], atol=1e-6)
    goal = Layers(tokens(hidden_mse), every(2, 4)[1:], plan=True)
    batch = {"mask": torch.ones(reps.shape[1:3], dtype=torch.bool)}
    said = goal(Signals(hidden=dict(enumerate(reps))), Signals(hidden=dict(enumerate(theirs))), batch, START)
    np.testing.assert_allclose(said.total({"mask": 8}).item(), case["out_rep_loss"], rtol=1e-5)
    scores = [torch.from_numpy(case[f"in_atts_{side}"]) for side in "ST"]
    student, teacher = (side.masked_fill(side <= -100, 0) for side in scores)  # hidden keys
    cost = (student[:, None] - teacher[None]).square().mean((2, 3, 4, 5))
    np.testing.assert_allclose((transport(cost) * cost).sum(), case["fix_att_loss"], rtol=1e-5)


def test_a_plan_carries_uniform_masses_at_the_least_cost():
    cost = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    plan = transport(cost)
    torch.testing.assert_close(plan.sum(0), torch.full((5,), 1 / 5))
    torch.testing.assert_close(plan.sum(1), torch.full((3,), 1 / 3))
    assert (plan * cost).sum() < cost.mean()
    with pytest.raises(LimbeckError, match="NaN or infinite"):
        transport(cost.clone().fill_(torch.nan))


def test_attention_is_compared_with_any_number_of_heads():
    generator = torch.Generator().manual_seed(0)
    draw = lambda heads: tuple(torch.randn(2, heads, 3, 4, generator=generator) for _ in "qkv")  # noqa: E731
    batch = {"mask": torch.tensor([[True, True, False], [True, True, True]])}
    ours = draw(2)
    same = Layers(attention("mse"), [(1, 1)])(Signals(qkv={1: ours}), Signals(qkv={1: ours}), batch, START)
    assert same["intermediate"].sum == 0
    other = Layers(attention("ce"), [(1, 1)])(Signals(qkv={1: ours}), Signals(qkv={1: draw(4)}), batch, START)
    assert other["intermediate"].sum > 0
