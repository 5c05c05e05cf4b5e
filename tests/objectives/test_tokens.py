"""Soft and hard objectives: released code, empty masks, and what they refuse."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.batch import IGNORE, next_token_batch
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Readout, Signals
from limbeck.core.terms import Clock, count
from limbeck.losses.divergence import forward_kl, jsd, reverse_kl, total_variation
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import weighted

GOLDEN = Path(__file__).parents[1] / "golden" / "kd-objectives-anchors"
NOW = Clock(3, 10)


def batch(rows=2, length=5, vocabulary=7):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (rows, length), generator=generator)
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[1, 3:] = False
    return next_token_batch(ids, mask)


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mean(objective, student, teacher, data):
    terms = objective(student, teacher, data, NOW)
    return terms.total({unit: count(data, unit) for unit in terms.units()})


def test_soft_is_the_mean_over_the_unit():
    data, s, t = batch(), logits(2, 5, 7), logits(2, 5, 7, seed=1)
    got = mean(soft(reverse_kl, temperature=2.0), Signals(logits=s), Signals(logits=t), data)
    expected = reverse_kl(s, t, 2.0)[data["answer"]].mean()
    torch.testing.assert_close(got, expected)


def test_rescale_multiplies_by_the_square_of_the_temperature():
    data, s, t = batch(), Signals(logits=logits(2, 5, 7)), Signals(logits=logits(2, 5, 7, seed=1))
    plain, scaled = mean(soft(temperature=3.0), s, t, data), mean(soft(temperature=3.0, rescale=True), s, t, data)
    torch.testing.assert_close(scaled, 9 * plain)


def test_temperature_may_be_a_schedule():
    data, s, t = batch(), Signals(logits=logits(2, 5, 7)), Signals(logits=logits(2, 5, 7, seed=1))
    moving = soft(temperature=lambda clock: 1 + clock.step)
    torch.testing.assert_close(mean(moving, s, t, data), mean(soft(temperature=4.0), s, t, data))


def test_only_the_chosen_positions_are_computed():
    asked = []

    class Spy:
        def at(self, positions=None):
            asked.append(positions)
            return logits(int(positions.sum()), 7)

    data = batch()
    soft()(Signals(readout=Spy()), Signals(readout=Spy()), data, NOW)
    hard()(Signals(readout=Spy()), Signals(), data, NOW)
    assert len(asked) == 3
    assert all(torch.equal(positions, data["answer"]) for positions in asked)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, jsd, total_variation])
def test_student_equal_to_teacher_gives_zero(divergence):
    same = Signals(logits=logits(2, 5, 7))
    assert mean(soft(divergence), same, same, batch()).abs() < 1e-6


@pytest.mark.parametrize("objective", [soft(), soft(jsd), hard()])
def test_empty_mask_gives_zero_with_a_finite_gradient(objective):
    data = batch() | {"answer": torch.zeros(2, 5, dtype=torch.bool)}
    hidden, weight = logits(2, 5, 3).requires_grad_(), logits(7, 3).requires_grad_()
    total = mean(objective, Signals(readout=Readout(hidden, weight)), Signals(logits=logits(2, 5, 7)), data)
    assert total == 0
    for gradient in torch.autograd.grad(total, [hidden, weight]):
        assert (gradient == 0).all()


def test_hard_is_cross_entropy():
    data, s = batch(), logits(2, 5, 7)
    expected = torch.nn.functional.cross_entropy(s.flatten(0, 1), data["targets"].flatten())
    torch.testing.assert_close(mean(hard(), Signals(logits=s), Signals(), data), expected)


def test_rows():
    data = {"ids": torch.zeros(3, 4), "labels": torch.tensor([0, 2, 1])}
    s, t = Signals(logits=logits(3, 3)), Signals(logits=logits(3, 3, seed=1))
    expected = torch.nn.functional.cross_entropy(s.logits, data["labels"])
    torch.testing.assert_close(mean(hard(on="row"), s, t, data), expected)
    torch.testing.assert_close(mean(soft(on="row"), s, t, data), forward_kl(s.logits, t.logits).mean())
    with pytest.raises(LimbeckError, match="rows x classes"):
        soft(on="row")(Signals(logits=logits(3, 4, 3)), t, data, NOW)
    with pytest.raises(LimbeckError, match="'labels'"):
        hard(on="row")(s, t, {"ids": data["ids"]}, NOW)
    with pytest.raises(LimbeckError, match="whole numbers"):
        hard(on="row")(s, t, data | {"labels": torch.rand(3)}, NOW)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_a_teacher_with_nan_or_infinity(bad):
    wrong = logits(2, 5, 7)
    wrong[0, 1, 2] = bad
    with pytest.raises(LimbeckError, match="teacher's logits hold NaN or infinity"):
        soft()(Signals(logits=logits(2, 5, 7)), Signals(logits=wrong), batch(), NOW)


def test_a_teacher_may_forbid_tokens_but_not_all_of_them():
    barred = logits(2, 5, 7)
    barred[..., 3] = -torch.inf
    assert mean(soft(), Signals(logits=logits(2, 5, 7, seed=1)), Signals(logits=barred), batch()).isfinite()
    barred[0, 0] = -torch.inf
    with pytest.raises(LimbeckError, match="teacher's logits"):
        soft()(Signals(logits=logits(2, 5, 7)), Signals(logits=barred), batch(), NOW)


def test_nan_at_a_position_that_does_not_count_is_no_matter():
    wrong = logits(2, 5, 7)
    wrong[1, 4] = torch.nan  # padding
    assert mean(soft(), Signals(logits=logits(2, 5, 7)), Signals(logits=wrong), batch()).isfinite()


def test_refuses_vocabularies_of_different_sizes():
    with pytest.raises(LimbeckError, match=r"has 7 entries and the teacher's 8.*same tokenizer.*padded"):
        soft()(Signals(logits=logits(2, 5, 7)), Signals(logits=logits(2, 5, 8)), batch(), NOW)


def test_refuses_units_and_positions_that_are_not_there():
    data, s = batch(), Signals(logits=logits(2, 5, 7))
    with pytest.raises(LimbeckError, match="averaged over 'query'"):
        soft(on="query")(s, s, data, NOW)
    with pytest.raises(LimbeckError, match="same rows and positions"):
        soft()(s, Signals(logits=logits(2, 6, 7)), data, NOW)
    with pytest.raises(LimbeckError, match="needs the signal 'logits'"):
        soft()(s, Signals(), data, NOW)


def test_hard_refuses_positions_without_a_target_and_foreign_targets():
    data, s = batch(), Signals(logits=logits(2, 5, 7))
    foreign = data["targets"].where(data["targets"] == IGNORE, torch.tensor([[0, 7, 7, 7, 7]]))
    with pytest.raises(LimbeckError, match="without a target"):
        hard(on="mask")(s, s, data, NOW)
    with pytest.raises(LimbeckError, match="run from 0 to 7, but the model gives 7"):
        hard()(s, s, data | {"targets": foreign}, NOW)
    with pytest.raises(LimbeckError, match="'targets'"):
        hard()(s, s, {"answer": data["answer"]}, NOW)


def test_prints_as_it_was_called():
    assert (
        repr(soft(partial(jsd, beta=0.1), temperature=2.0))
        == "soft(partial(jsd, beta=0.1), temperature=2.0, on='answer')"
    )
    assert repr(hard("masked")) == "hard(on='masked')"


def readouts(data, bias=True, scales=(1.0, 1.0), caps=(0.0, 0.0)):
    """Student and teacher of a golden case as readouts; the student's leaves need gradients."""
    sides = []
    for side, scale, cap in zip(("student", "teacher"), scales, caps, strict=True):
        hidden, weight, offset = (torch.tensor(data[f"in_{side}_{x}"]) for x in ("hidden", "weight", "bias"))
        for x in (hidden, weight, offset):
            x.requires_grad_(side == "student")
        hidden = hidden if hidden.dim() == 3 else hidden[None]
        sides.append(Readout(hidden, weight, offset if bias else None, float(scale), float(cap) or None))
    return sides


def check_gradients(data, i, student, total, names):
    leaves = {"hidden": student.hidden, "weight": student.weight, "bias": student.bias}
    for name in names:
        expected = data[f"out_grad_{name}"][i]
        (got,) = torch.autograd.grad(total, leaves[name], retain_graph=True)
        np.testing.assert_allclose(
            got.reshape(expected.shape).numpy(), expected, rtol=0, atol=2e-6 * np.abs(expected).max() + 1e-9
        )


def test_golden_liger_soft_and_hard_from_hidden_states():
    data = dict(np.load(GOLDEN / "liger_jsd.npz"))
    labels = torch.tensor(data["in_labels"])[None]
    given = {"targets": labels, "answer": labels != IGNORE}
    for i, (beta, t, hard_share, soft_share, _, bias) in enumerate(data["hp_configs"]):
        student, teacher = readouts(data, bool(bias))
        goal = weighted(soft=(soft_share, soft(partial(jsd, beta=beta), temperature=t)), hard=(hard_share, hard()))
        terms = goal(Signals(readout=student), Signals(readout=teacher), given, NOW)
        n = count(given, "answer")
        assert terms["soft"].sum.item() / n == pytest.approx(data["out_soft"][i], rel=2e-6)
        assert terms["hard"].sum.item() / n == pytest.approx(data["out_hard"][i], rel=2e-6)
        total = terms.total({"answer": n})
        assert total.item() == pytest.approx(data["out_loss"][i], rel=2e-6)
        check_gradients(data, i, student, total, ["hidden", "weight"] + ["bias"] * bool(bias))


def test_golden_trl_scales_and_soft_caps():
    data = dict(np.load(GOLDEN / "trl_chunked.npz"))
    given = {"answer": torch.tensor(data["in_mask"]).bool()}
    for i, (beta, t, scale, cap, other_scale, other_cap, bias, items) in enumerate(data["hp_configs"]):
        student, teacher = readouts(data, bool(bias), (scale, other_scale), (cap, other_cap))
        terms = soft(partial(jsd, beta=beta), temperature=t)(
            Signals(readout=student), Signals(readout=teacher), given, NOW
        )
        total = terms.total({"answer": items or count(given, "answer")})
        assert total.item() == pytest.approx(data["out_loss"][i], rel=2e-6)
        check_gradients(data, i, student, total, ["hidden", "weight"] + ["bias"] * bool(bias))
