"""Weights of domains against the equations (golden arrays), and when they move."""

import json
from pathlib import Path

import numpy as np
import pytest

from limbeck.core.check import LimbeckError
from limbeck.core.terms import Clock
from limbeck.data.mixture import Mixture
from limbeck.data.reweight import DomainWeights, discrepancy, smoothed

GOLDEN = Path(__file__).parents[1] / "golden" / "ddk"


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"{name}.npz"))


def path(student: np.ndarray, teacher: np.ndarray, rule) -> np.ndarray:
    """The shares of a mixture whose domains have these perplexities, look by look; the first is only the start."""
    names = [f"domain {i}" for i in range(student.shape[1])]
    rows = iter(student)
    weights = DomainWeights(
        Mixture({name: [name] for name in names}),
        lambda: dict(zip(names, zip(next(rows).tolist(), teacher.tolist(), strict=True), strict=True)),
        period=1,
        rule=rule,
    )
    found = []
    for step in range(1, len(student) + 1):
        weights({}, Clock(step, len(student)))
        found.append([np.exp(weights.log_shares[name]) for name in names])
        if step > 1:
            assert list(weights.stream.weights.values()) == pytest.approx(found[-1], abs=1e-12)
        else:
            assert set(weights.stream.weights.values()) == {1 / len(names)}, "the first interval is as it was"
    return np.array(found)


def perplexity(case: dict[str, np.ndarray], whose: str) -> np.ndarray:
    return np.exp(case[f"in_{whose}_nll_sum"] / case["in_token_count"])


@pytest.mark.parametrize("number", range(4))
def test_golden_shares(number):
    case = golden("shares")
    alpha = float(case["hp_alphas"][number])
    found = path(perplexity(case, "student"), perplexity(case, "teacher"), smoothed(alpha))
    np.testing.assert_allclose(found, case[f"ref_shares_alpha{number}"], rtol=1e-12, atol=1e-12)
    assert (found[1:] >= (1 - alpha) / 4 - 1e-12).all()
    assert (found[1:] <= alpha + (1 - alpha) / 4 + 1e-12).all()


def test_golden_shares_without_smoothing_are_not_those_of_losses():
    case = golden("shares")
    found = path(perplexity(case, "student"), perplexity(case, "teacher"), discrepancy)
    np.testing.assert_allclose(found, case["ref_shares_no_smoothing"], rtol=1e-12, atol=1e-12)
    assert np.abs(found - case["bad_shares_loss_ratio"]).max() > 0.01


@pytest.mark.parametrize(
    ("student", "shares"), [("in_student_ppl", "ref_shares"), ("in_student_ppl_switch", "ref_shares_switch")]
)
def test_golden_ratios_in_the_thousands(student, shares):
    case = golden("shares_huge_ratio")
    found = path(case[student], case["in_teacher_ppl"], smoothed(float(case["hp_alpha"])))
    np.testing.assert_allclose(found, case[shares], rtol=1e-12, atol=1e-12)


def test_two_domains_by_hand():
    found = path(np.array([[2.0, 1.0], [2.0, 1.0]]), np.ones(2), smoothed(0.5))
    np.testing.assert_allclose(found, [[0.7310586, 0.2689414], [0.6903985, 0.3096015]], atol=1e-7)


RULE = smoothed(0.5)


def following(look, period=10, rule=RULE):
    return DomainWeights(Mixture({"a": [1], "b": [2]}, {"a": 3, "b": 1}), look, period, rule)


def test_it_looks_after_the_first_step_and_every_period_and_says_what_it_saw():
    seen = following(lambda: {"a": (6.0, 2.0), "b": (4.0, 4.0)})
    said = {step: seen({}, Clock(step, 30)) for step in range(1, 31)}
    assert [step for step, found in said.items() if found] == [1, 10, 20, 30]
    assert said[1] == {
        "perplexity.a": 6.0,
        "perplexity.b": 4.0,
        "teacher_perplexity.a": 2.0,
        "teacher_perplexity.b": 4.0,
        "share.a": 0.75,
        "share.b": 0.25,
    }
    assert said[10]["share.a"] == pytest.approx(0.5 * np.exp(4) / (np.exp(4) + 1) + 0.25)
    assert [look["step"] for look in seen.looks] == [1, 10, 20, 30]


def test_without_a_rule_it_only_watches():
    seen = following(lambda: {"a": (6.0, 2.0), "b": (4.0, 4.0)}, period=1, rule=None)
    for step in range(1, 4):
        assert seen({}, Clock(step, 3))["share.a"] == 0.75


def test_a_restored_memory_goes_on_exactly():
    looks = [{"a": (5.0 - 0.3 * i, 2.0), "b": (4.0 - 0.1 * i, 2.0)} for i in range(8)]
    whole, first = (following(iter(looks).__next__, period=1) for _ in range(2))
    for step in range(1, 9):
        whole({}, Clock(step, 8))
    for step in range(1, 5):
        first({}, Clock(step, 8))
    second = following(iter(looks[4:]).__next__, period=1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(5, 9):
        second({}, Clock(step, 8))
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("look", "message"),
    [
        ({"a": (float("inf"), 2.0), "b": (1.0, 1.0)}, "domain 'a': the student's perplexity is inf"),
        ({"a": (1.0, 2.0), "b": (1.0, float("nan"))}, "domain 'b': the teacher's perplexity is nan"),
        ({"a": (1.0, 2.0)}, r"perplexities are of \['a'\], but the stream's domains are \['a', 'b'\]"),
    ],
)
def test_looks_that_make_no_sense_are_refused(look, message):
    with pytest.raises(LimbeckError, match=message):
        following(lambda: look)({}, Clock(1, 2))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(LimbeckError, match=r"alpha must lie from 0 to 1, but is 1\.5"):
        smoothed(1.5)
    with pytest.raises(LimbeckError, match="period of at least 1 step"):
        following(dict, period=0)
