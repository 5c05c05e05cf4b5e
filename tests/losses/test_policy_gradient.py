"""Returns, whitening and the clipped surrogate against the released code (golden) and by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.losses.divergence import cross_entropy, reverse_kl
from limbeck.losses.policy_gradient import clipped_surrogate, returns_to_go, whitened

GOLDEN = Path(__file__).parents[1] / "golden" / "kd-objectives-anchors"


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value.copy()) for name, value in np.load(GOLDEN / "minillm_lmops.npz").items()}


def test_golden_returns(released):
    mask = released["in_mask"].bool()
    returns = returns_to_go(released["in_rewards"], mask, float(released["hp_gamma"]))
    torch.testing.assert_close(returns, released["out_advantage_raw"] * mask, atol=1e-6, rtol=2e-6)


def test_golden_whitening_of_real_tokens(released):
    mask = released["in_mask"].bool()
    wanted = released["fix_advantage_white"].float() * mask
    torch.testing.assert_close(whitened(released["out_advantage_raw"], mask), wanted, atol=1e-6, rtol=2e-6)


def test_golden_policy_loss_and_single_step(released):
    mask = released["in_mask"].bool()
    now = -cross_entropy(released["in_student_logits"], released["in_response_ids"])
    torch.testing.assert_close(now * mask, released["out_logprobs"] * mask, atol=2e-6, rtol=2e-6)
    advantage, weight = released["out_advantage_white"], released["in_w"]
    clip = float(released["hp_cliprange"])
    loss = clipped_surrogate(now, released["in_old_logprobs"], advantage, weight, clip)
    torch.testing.assert_close(loss[mask].mean(), released["out_pg_loss"], atol=2e-6, rtol=2e-6)
    single = reverse_kl(released["in_student_logits"], released["in_teacher_logits"])
    torch.testing.assert_close(single[mask].mean(), released["out_reg_loss"], atol=2e-6, rtol=2e-6)


def trl() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "minillm_trl.npz"))


@pytest.mark.parametrize("index", range(4))
def test_golden_advantages_of_trl(index):
    """The fifth is left out: with gamma below 1, TRL divides by discounted counts, the authors' code by counts."""
    case = trl()
    gamma, normalised = case["hp_gamma_lengthnorm"][index].tolist()
    mask = torch.from_numpy(case["in_mask"]).bool()
    rewards = torch.from_numpy(case["out_teacher_logp"] - case["out_student_logp"])
    found = returns_to_go(rewards, mask, gamma, mean=bool(normalised) and gamma > 0)
    wanted = torch.from_numpy(case[f"fix_advantage_{index}"]).float() * mask
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=2e-6)


def test_what_follows_leaves_the_token_itself_out():
    rewards = torch.tensor([[1.0, 2.0, 4.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert returns_to_go(rewards, mask, later_only=True, mean=False).tolist() == [[6, 4, 0, 0]]
    assert returns_to_go(rewards, mask, later_only=True).tolist() == [[3, 4, 0, 0]]
    assert returns_to_go(rewards, mask, 0.5, later_only=True, mean=False).tolist() == [[2, 2, 0, 0]]
    assert returns_to_go(rewards, mask)[0].tolist() == pytest.approx([7 / 3, 3, 4, 0])


def test_whitening_ignores_padding_and_survives_its_absence():
    values, mask = torch.tensor([[1.0, 3.0, 500.0]]), torch.tensor([[True, True, False]])
    half = 2**-0.5
    torch.testing.assert_close(whitened(values, mask), torch.tensor([[-half, half, 0.0]]))
    assert whitened(values, torch.zeros_like(mask)).tolist() == [[0, 0, 0]]


def test_the_clip_stops_the_gradient_where_the_gain_is_taken_already():
    now = torch.tensor([0.0, 0.5, 0.5, -0.5], requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss = clipped_surrogate(now, torch.zeros(4), advantage, clip=0.2)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([-1.0, -1.2, np.exp(0.5), 0.8], rel=1e-6)
    assert now.grad.tolist() == pytest.approx([-1.0, 0.0, np.exp(0.5), 0.0], rel=1e-6)


def test_shapes_and_ranges_are_checked():
    with pytest.raises(LimbeckError, match="must agree"):
        returns_to_go(torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(LimbeckError, match="above 0"):
        clipped_surrogate(torch.zeros(2), torch.zeros(2), torch.zeros(2), clip=0.0)
