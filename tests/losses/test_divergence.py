"""Divergences: against released code (golden), against float64 NumPy, at the edges."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.losses.decoupled import adaptive_kl, decoupled_kl
from limbeck.losses.divergence import (
    LOG_ZERO,
    cross_entropy,
    forward_kl,
    forward_kl_probs,
    jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    soft_cross_entropy,
    soft_cross_entropy_probs,
    total_variation,
)

GOLDEN = Path(__file__).parents[1] / "golden"
DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": partial(skew_reverse_kl, alpha=0.3),
    "jsd": jsd,
    "jsd 0.1": partial(jsd, beta=0.1),
    "jsd 0": partial(jsd, beta=0),
    "jsd 1": partial(jsd, beta=1),
    "total_variation": total_variation,
    "adaptive_kl": adaptive_kl,
}


def softmax(x, temperature=1.0):
    e = np.exp(x / temperature - (x / temperature).max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def np_jsd(q, p, b):
    m = b * p + (1 - b) * q
    return b * kl(p, m) + (1 - b) * kl(q, m)


def np_adaptive(q, p, threshold=0.5):
    result = []
    for one, two in zip(q.reshape(-1, q.shape[-1]), p.reshape(-1, p.shape[-1]), strict=True):
        mass, gaps = 0.0, [0.0, 0.0]
        for token in np.argsort(two):
            mass += two[token]
            gaps[int(mass >= threshold)] += abs(two[token] - one[token])
        w = gaps[1] / sum(gaps)
        result.append(w * kl(two, one) + (1 - w) * kl(one, two))
    return np.array(result).reshape(q.shape[:-1])


REFERENCES = {
    "forward_kl": lambda q, p: kl(p, q),
    "reverse_kl": lambda q, p: kl(q, p),
    "skew_forward_kl": lambda q, p: kl(p, 0.1 * p + 0.9 * q),
    "skew_reverse_kl": lambda q, p: kl(q, 0.7 * p + 0.3 * q),
    "jsd": lambda q, p: np_jsd(q, p, 0.5),
    "jsd 0.1": lambda q, p: np_jsd(q, p, 0.1),
    "jsd 0": lambda q, p: kl(p, q),
    "jsd 1": lambda q, p: kl(q, p),
    "total_variation": lambda q, p: np.abs(p - q).sum(-1) / 2,
    "adaptive_kl": np_adaptive,
}


def draw(*shape, seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * scale, rng.normal(size=shape) * scale


def load(slug, case):
    return dict(np.load(GOLDEN / slug / f"{case}.npz"))


def masked_mean(function, data, *extra, dtype=torch.float32, **settings):
    """Mean over the masked tokens and its gradient for the student, as the released code reports them."""
    student = torch.tensor(data["in_student_logits"], dtype=dtype, requires_grad=True)
    teacher = torch.tensor(data["in_teacher_logits"], dtype=dtype)
    mask = torch.tensor(data["in_mask"] if "in_mask" in data else data["in_labels"] != -100).bool()
    value = function(student[mask], teacher[mask], *(x[mask] for x in extra), **settings).mean()
    (gradient,) = torch.autograd.grad(value, student)
    return value.item(), gradient.numpy()


def check(function, data, value, gradient, tolerance, **settings):
    got, slope = masked_mean(function, data, **settings)
    np.testing.assert_allclose(got, value, rtol=tolerance, atol=tolerance)
    if gradient is not None:
        np.testing.assert_allclose(slope, gradient, rtol=0, atol=tolerance * np.abs(gradient).max() + 1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_matches_numpy(name, temperature):
    student, teacher = draw(3, 4, 9)
    expected = REFERENCES[name](softmax(student, temperature), softmax(teacher, temperature))
    got = DIVERGENCES[name](torch.tensor(student), torch.tensor(teacher), temperature=temperature)
    assert got.shape == (3, 4)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", [n for n in DIVERGENCES if n != "adaptive_kl"])
def test_gradcheck(name):
    student, teacher = (torch.tensor(x, requires_grad=True) for x in draw(2, 5))
    assert torch.autograd.gradcheck(lambda s, t: DIVERGENCES[name](s, t, temperature=1.7), (student, teacher))


def test_adaptive_kl_gradient_takes_its_weights_as_constant():
    student, teacher = (torch.tensor(x) for x in draw(6, 7))
    student.requires_grad_()
    gaps = (teacher.softmax(-1) - student.softmax(-1)).abs().detach()
    ascending, order = teacher.softmax(-1).sort(-1)
    head = (gaps.gather(-1, order) * (ascending.cumsum(-1) >= 0.5)).sum(-1) / gaps.sum(-1)
    goal = (head * forward_kl(student, teacher) + (1 - head) * reverse_kl(student, teacher)).sum()
    expected = torch.autograd.grad(goal, student)[0]
    torch.testing.assert_close(torch.autograd.grad(adaptive_kl(student, teacher).sum(), student)[0], expected)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_inputs_give_zero_and_no_gradient(name):
    logits = torch.tensor(draw(4, 11)[0], dtype=torch.float32)
    student = logits.clone().requires_grad_()
    values = DIVERGENCES[name](student, logits)
    assert values.abs().max() < 1e-6
    assert torch.autograd.grad(values.sum(), student)[0].abs().max() < 1e-6


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("scale", [100.0, 1e4, 1e6])
def test_huge_logits_stay_finite(name, scale):
    student, teacher = (torch.tensor(x, dtype=torch.float32) * scale for x in draw(5, 8))
    student.requires_grad_()
    values = DIVERGENCES[name](student, teacher)
    assert values.isfinite().all()
    assert torch.autograd.grad(values.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_tokens_forbidden_on_both_sides_count_nothing(name):
    student, teacher = draw(4, 6)
    expected = DIVERGENCES[name](torch.tensor(student), torch.tensor(teacher))
    barred = np.full((4, 2), -np.inf)
    longer = torch.tensor(np.concatenate([student, barred], 1), requires_grad=True)
    values = DIVERGENCES[name](longer, torch.tensor(np.concatenate([teacher, barred], 1)))
    torch.testing.assert_close(values, expected)
    gradient = torch.autograd.grad(values.sum(), longer)[0]
    assert gradient.isfinite().all()
    assert (gradient[:, 6:] == 0).all()


@pytest.mark.parametrize("name", [*DIVERGENCES, "soft_cross_entropy"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_token_forbidden_on_one_side_stays_finite(name, side):
    both = {
        key: torch.tensor(x, dtype=torch.float32) for key, x in zip(("student", "teacher"), draw(4, 6), strict=True)
    }
    both[side][:, 2] = -torch.inf
    student = both["student"].requires_grad_()
    values = DIVERGENCES.get(name, soft_cross_entropy)(student, both["teacher"])
    assert values.isfinite().all()
    assert torch.autograd.grad(values.sum(), student)[0].isfinite().all()


def test_what_the_student_cannot_say_costs_the_teachers_probability_times_log_zero():
    student, teacher = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 0.0]])
    assert forward_kl(student, teacher).item() == pytest.approx(-0.5 * LOG_ZERO, rel=1e-4)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_half_precision_in_float32_out(name):
    student, teacher = (torch.tensor(x).bfloat16() for x in draw(3, 50))
    values = DIVERGENCES[name](student, teacher)
    assert values.dtype == torch.float32
    expected = DIVERGENCES[name](student.double(), teacher.double())
    torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("shape", [(5,), (1, 1, 5), (0, 5), (2, 0, 5)])
def test_one_token_and_no_token(name, shape):
    student, teacher = (torch.tensor(x, requires_grad=True) for x in draw(*shape))
    values = DIVERGENCES[name](student, teacher)
    assert values.shape == shape[:-1]
    values.sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    "function", [*DIVERGENCES.values(), soft_cross_entropy, soft_cross_entropy_probs, forward_kl_probs]
)
def test_refuses_shapes_that_only_broadcast(function):
    for teacher in (torch.zeros(1, 5), torch.zeros(3, 1), torch.zeros(5)):
        with pytest.raises(LimbeckError, match="same shape"):
            function(torch.zeros(3, 5), teacher)


@pytest.mark.parametrize("function", [*DIVERGENCES.values(), soft_cross_entropy])
def test_refuses_one_candidate_and_no_temperature(function):
    with pytest.raises(LimbeckError, match="one candidate"):
        function(torch.zeros(3, 1), torch.zeros(3, 1))
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(LimbeckError, match="temperature"):
            function(torch.zeros(3, 4), torch.zeros(3, 4), temperature=temperature)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_refuses_mixture_weights_outside_the_unit_interval(share):
    x = torch.zeros(2, 3)
    for call in (
        partial(jsd, beta=share),
        partial(skew_forward_kl, alpha=share),
        partial(skew_reverse_kl, alpha=share),
    ):
        with pytest.raises(LimbeckError, match="mixture"):
            call(x, x)


def test_identities():
    student, teacher = (torch.tensor(x) for x in draw(20, 6))
    torch.testing.assert_close(jsd(student, teacher, beta=0.2), jsd(teacher, student, beta=0.8))
    torch.testing.assert_close(skew_forward_kl(student, teacher, alpha=0.0), forward_kl(student, teacher))
    torch.testing.assert_close(skew_reverse_kl(student, teacher, alpha=0.0), reverse_kl(student, teacher))
    assert skew_forward_kl(student, teacher, alpha=1.0).abs().max() < 1e-12
    assert (total_variation(student, teacher) <= (forward_kl(student, teacher) / 2).sqrt() + 1e-12).all()
    entropy = -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(soft_cross_entropy(student, teacher), forward_kl(student, teacher) + entropy)


def test_probability_targets_equal_logit_targets():
    student, teacher = (torch.tensor(x) for x in draw(7, 6))
    p = (teacher / 2.0).softmax(-1)
    torch.testing.assert_close(soft_cross_entropy_probs(student, p, 2.0), soft_cross_entropy(student, teacher, 2.0))
    torch.testing.assert_close(forward_kl_probs(student, p, 2.0), forward_kl(student, teacher, 2.0))
    certain = torch.eye(6)[:3]
    torch.testing.assert_close(
        forward_kl_probs(student[:3].float(), certain), cross_entropy(student[:3].float(), torch.arange(3))
    )


def test_cross_entropy_matches_numpy_and_ignores():
    logits = draw(4, 5, 7)[0]
    targets = np.random.default_rng(1).integers(0, 7, (4, 5))
    targets[1, 2:] = -100
    got = cross_entropy(torch.tensor(logits), torch.tensor(targets)).numpy()
    for row in np.ndindex(4, 5):
        expected = 0 if targets[row] == -100 else -np.log(softmax(logits[row])[targets[row]])
        assert got[row] == pytest.approx(expected, abs=1e-12)


def test_cross_entropy_edges():
    assert torch.autograd.gradcheck(
        lambda x: cross_entropy(x, torch.tensor([0, -100])), (torch.randn(2, 3).double().requires_grad_(),)
    )
    logits = torch.tensor([[1e4, -1e4, -torch.inf]], requires_grad=True)
    assert cross_entropy(logits, torch.tensor([1])).item() == 2e4
    assert cross_entropy(logits, torch.tensor([2])).item() == -LOG_ZERO
    assert cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).shape == (0,)
    assert cross_entropy(torch.zeros(2, 3), torch.tensor([1, 1]), ignore=1).tolist() == [0, 0]
    with pytest.raises(LimbeckError, match="targets of shape"):
        cross_entropy(torch.zeros(2, 5, 3), torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises((IndexError, RuntimeError)):
        cross_entropy(torch.zeros(2, 3), torch.tensor([0, -1]))  # not the ignored index: no silent 0


def test_golden_taid_divergences():
    data = load("taid", "divergences")
    plain = {"reverse_kl": reverse_kl, "tvd": total_variation}
    for name, function in plain.items():
        check(function, data, data[f"out_{name}"], data[f"out_grad_{name}"], 1e-6)
    check(soft_cross_entropy, data, data["out_forward_kl"], data["ref_grad_forward_kl"], 1e-6)
    check(forward_kl, data, data["fix_forward_kl"], data["ref_grad_forward_kl"], 1e-6)
    for i, weight in enumerate(data["hp_weights"]):
        check(jsd, data, data["out_js"][i], data["ref_grad_js"][i], 1e-6, beta=weight)
        check(skew_forward_kl, data, data["fix_skew_fkl"][i], data["ref_grad_skew_fkl"][i], 1e-6, alpha=weight)
        check(skew_reverse_kl, data, data["out_skew_rkl"][i], data["ref_grad_skew_rkl"][i], 1e-6, alpha=weight)


def test_golden_taid_in_float64():
    data = load("taid", "divergences")
    value, gradient = masked_mean(reverse_kl, data, dtype=torch.float64)
    assert value == pytest.approx(float(data["ref_reverse_kl"]), rel=1e-12)
    np.testing.assert_allclose(gradient, data["ref_grad_reverse_kl"], atol=1e-12)


def test_golden_taid_extreme_logits():
    data = load("taid", "extreme_logits")
    weight = float(data["hp_weight"])
    check(soft_cross_entropy, data, data["out_forward_kl"], None, 1e-6)
    check(reverse_kl, data, data["out_reverse_kl"], None, 1e-6)
    check(jsd, data, data["fix_js"], None, 1e-6, beta=weight)
    check(skew_forward_kl, data, data["fix_skew_fkl"], None, 1e-6, alpha=weight)
    check(skew_reverse_kl, data, data["fix_skew_rkl"], None, 1e-6, alpha=weight)


def test_golden_taid_adaptive_kl():
    data = load("taid", "adaptive_kl")
    for threshold, expected, wrong in zip(
        data["hp_thresholds"], data["fix_adaptive_kl"], data["out_adaptive_kl"], strict=True
    ):
        check(adaptive_kl, data, expected, None, 1e-6, threshold=threshold)
        assert abs(masked_mean(adaptive_kl, data, threshold=threshold)[0] - wrong) > 1e-3


def test_golden_taid_dkd():
    data = load("taid", "dkd")
    target, mask = torch.tensor(data["in_target"]), data["in_mask"].astype(bool)
    for (alpha, beta, t), expected, slope in zip(
        data["hp_alpha_beta_T"], data["fix_dkd"], data["ref_grad_dkd"], strict=True
    ):
        settings = {"temperature": t, "alpha": alpha, "beta": beta}
        value, gradient = masked_mean(lambda s, y, c, **k: decoupled_kl(s, y, c, **k), data, target, **settings)
        np.testing.assert_allclose(value * t**2, expected, rtol=1e-6)
        right = slope * mask.size / mask.sum()  # the source divides by all rows
        np.testing.assert_allclose(gradient * t**2, right, atol=2e-6 * np.abs(right).max())


def test_decoupled_kl_edges():
    student, teacher = (torch.tensor(x) for x in draw(5, 6))
    target = torch.tensor([0, 1, 2, 3, 5])
    p = teacher.softmax(-1).gather(-1, target[:, None])[:, 0]
    whole = [decoupled_kl(student[i], teacher[i], target[i], alpha=1, beta=float(1 - p[i])) for i in range(5)]
    torch.testing.assert_close(torch.stack(whole), forward_kl(student, teacher))
    assert decoupled_kl(teacher, teacher, target).abs().max() < 1e-12
    huge = (student * 1e4).float().requires_grad_()
    values = decoupled_kl(huge, (teacher * 1e4).float(), target)
    assert values.isfinite().all()
    assert torch.autograd.grad(values.sum(), huge)[0].isfinite().all()
    with pytest.raises(LimbeckError, match="three candidates"):
        decoupled_kl(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(LimbeckError, match="targets of shape"):
        decoupled_kl(student, teacher, target[:, None])


def test_golden_anchors_gkd():
    data = load("kd-objectives-anchors", "gkd_jsd")
    for (i, beta), (j, t) in [(a, b) for a in enumerate(data["hp_betas"]) for b in enumerate(data["hp_temperatures"])]:
        gradient = data["ref_grad_batchmean"][i, j]
        check(jsd, data, data["out_batchmean"][i, j], gradient, 2e-6, beta=beta, temperature=t)


def test_golden_anchors_distillm():
    data = load("kd-objectives-anchors", "distillm")
    check(forward_kl, data, data["fix_forward_kl"], data["ref_grad_forward_kl"], 2e-6)
    check(reverse_kl, data, data["out_reverse_kl"], data["ref_grad_reverse_kl"], 2e-6)
    check(total_variation, data, data["out_tv_distance"], data["ref_grad_tv_distance"], 2e-6)
    for i, lam in enumerate(data["hp_js_lams"]):
        check(jsd, data, data["out_js_distance"][i], data["ref_grad_js_distance"][i], 2e-6, beta=1 - lam)
    for i, lam in enumerate(data["hp_skew_lams"]):
        forward, reverse = data["fix_skewed_forward_kl"][i], data["out_skewed_reverse_kl"][i]
        check(skew_forward_kl, data, forward, data["ref_grad_skewed_forward_kl"][i], 2e-6, alpha=lam)
        check(skew_reverse_kl, data, reverse, data["ref_grad_skewed_reverse_kl"][i], 2e-6, alpha=lam)


def test_golden_anchors_extreme_logits():
    data = load("kd-objectives-anchors", "extreme_logits")
    for beta, expected in zip(data["hp_betas"], data["out_trl_jsd"], strict=True):
        check(jsd, data, expected, None, 2e-6, beta=beta)
    check(jsd, data, data["fix_js_distance"], None, 2e-6, beta=1 - float(data["hp_js_lam"]))
    alpha = float(data["hp_skew_lam"])
    check(skew_forward_kl, data, data["fix_skewed_forward_kl"], None, 2e-6, alpha=alpha)
    check(skew_reverse_kl, data, data["fix_skewed_reverse_kl"], None, 2e-6, alpha=alpha)


def test_golden_anchors_minillm_reverse_kl():
    data = load("kd-objectives-anchors", "minillm_trl")
    check(reverse_kl, data, data["out_rkl_masked_batchmean"], None, 2e-6)
