"""Loyalty against the released definition (golden arrays), its exact properties and its refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.analyses.loyalty import (
    Loyalty,
    by_name,
    js_distance,
    label_agreement,
    label_loyalty,
    loyalty,
    mean_prediction,
    probability_loyalty,
    range_loyalty,
    regression_loyalty,
)
from limbeck.core.check import LimbeckError

GOLDEN = Path(__file__).parents[1] / "golden" / "romanian-multi-teacher-loyalty"
TIGHT = {"rtol": 0, "atol": 1e-12}


def random_probabilities(items: int = 20, classes: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(items, classes, generator=generator, dtype=torch.float64).softmax(-1)


@pytest.fixture
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "loyalty.npz"))


@pytest.mark.parametrize("who", ["a", "b"])
def test_golden_values(golden, who):
    teacher, student = golden["in_teacher_probs"], golden[f"in_student_probs_{who}"]
    scores = golden["in_teacher_scores"], golden[f"in_student_scores_{who}"]
    span = float(golden["hp_score_range"])
    np.testing.assert_allclose(label_loyalty(teacher, student), golden[f"out_label_loyalty_{who}"], **TIGHT)
    for base, name in ((2.0, "2"), (np.e, "e")):
        distances = js_distance(teacher, student, base).numpy()
        np.testing.assert_allclose(distances, golden[f"out_js_distance_{who}_base{name}"], **TIGHT)
        expected = golden[f"out_probability_loyalty_{who}_base{name}"]
        np.testing.assert_allclose(probability_loyalty(teacher, student, base), expected, **TIGHT)
    pearson = golden[f"out_regression_loyalty_pearson_{who}"]
    np.testing.assert_allclose(regression_loyalty(*scores), pearson, **TIGHT)
    np.testing.assert_allclose(range_loyalty(*scores, span), golden[f"ref_regression_loyalty_range_{who}"], **TIGHT)


def test_golden_edge_rows():
    edge = np.load(GOLDEN / "edge_rows.npz")
    normal = np.isclose(edge["in_student_probs"].sum(1), 1)
    teacher, student = edge["in_teacher_probs"][normal], edge["in_student_probs"][normal]
    distances = js_distance(teacher, student).numpy()
    np.testing.assert_allclose(distances, edge["out_js_distance"][normal], **TIGHT)
    np.testing.assert_allclose(1 - distances, edge["fix_probability_loyalty_items"][normal], **TIGHT)
    assert np.abs(1 - distances - edge["bad_sqrt_twice"][normal]).max() > 0.1
    assert not normal.all(), "the golden table holds a row that has to be refused"
    with pytest.raises(LimbeckError, match=r"student's row 3 sums to 2 instead of 1"):
        js_distance(edge["in_teacher_probs"], edge["in_student_probs"])


def test_a_student_is_fully_loyal_to_itself():
    p = random_probabilities()
    assert label_loyalty(p, p) == 1
    assert probability_loyalty(p, p) == 1
    assert regression_loyalty(p[:, 0], p[:, 0]) == pytest.approx(1, abs=1e-12)
    assert range_loyalty(p[:, 0], p[:, 0], 1) == 1


def test_symmetry_and_rescaling():
    p, q = random_probabilities(seed=1), random_probabilities(seed=2)
    sharper = (q.log() * 3).softmax(-1)
    assert probability_loyalty(p, q) == pytest.approx(probability_loyalty(q, p), abs=1e-12)
    assert label_loyalty(p, q) == label_loyalty(p, sharper)
    assert abs(probability_loyalty(p, q) - probability_loyalty(p, sharper)) > 0.01
    assert regression_loyalty(p[:, 0], 7 * p[:, 0] - 2) == pytest.approx(1, abs=1e-12)


def test_disjoint_predictions_are_not_loyal_at_all():
    p, q = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert probability_loyalty(p, q) == 0
    assert probability_loyalty(p, q, base=np.e) == pytest.approx(1 - np.sqrt(np.log(2)))


def test_ties_go_to_the_first_class():
    tied = torch.tensor([[0.4, 0.4, 0.2]])
    assert label_agreement(tied, torch.tensor([[0.5, 0.3, 0.2]])).item() == 1
    assert label_agreement(tied, torch.tensor([[0.3, 0.5, 0.2]])).item() == 0


def test_mean_prediction_averages_probabilities():
    p, q = random_probabilities(seed=1), random_probabilities(seed=2)
    torch.testing.assert_close(mean_prediction([p, q], [0.25, 0.75]), 0.25 * p + 0.75 * q)
    torch.testing.assert_close(mean_prediction([p, q]), (p + q) / 2)


def test_report_covers_every_teacher_and_their_average():
    one, two, student = (random_probabilities(seed=s) for s in range(3))
    targets = one.argmax(-1)
    report = loyalty(student, {"one": one, "two": two}, targets)
    assert set(report) == {"one", "two", "average", "student"}
    assert report["two"]["probability"] == pytest.approx(probability_loyalty(two, student))
    assert report["average"]["probability"] == pytest.approx(probability_loyalty((one + two) / 2, student))
    assert report["average"]["label"] == label_loyalty((one + two) / 2, student)
    assert report["one"]["accuracy"] == 1
    assert report["student"] == {"accuracy": label_loyalty(one, student)}


def test_uneven_batches_weigh_items_not_batches():
    teacher, student = random_probabilities(seed=1), random_probabilities(seed=2)
    meter = Loyalty()
    for part in (slice(0, 3), slice(3, 20)):
        meter.add(student[part], {"t": teacher[part]})
    assert meter.items == 20
    assert meter.result()["t"] == pytest.approx(loyalty(student, {"t": teacher})["t"])


def test_classes_are_matched_by_name():
    p = random_probabilities(classes=3)
    names, wanted = ["neg", "neutral", "pos"], ["pos", "neg", "neutral"]
    torch.testing.assert_close(by_name(p, names, wanted), p[:, [2, 0, 1]])
    with pytest.raises(LimbeckError, match="do not have the same classes"):
        by_name(p, names, ["pos", "neg", "mixed"])


P = [[0.5, 0.5], [0.2, 0.8]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: label_loyalty(P, [[0.5, 0.5]]), r"one shape .*\(2, 2\) and \(1, 2\)"),
        (lambda: label_loyalty(P, [[0.2, 0.3, 0.5]] * 2), "one shape"),
        (lambda: label_loyalty(torch.zeros(0, 3), torch.zeros(0, 3)), r"at least 1 x 2; got shape \(0, 3\)"),
        (lambda: label_loyalty([[1.0]], [[1.0]]), "at least 1 x 2"),
        (lambda: probability_loyalty(P, [[1.5, -0.5]] * 2), "negative or non-finite"),
        (lambda: probability_loyalty(P, [[float("nan"), 1.0]] * 2), "negative or non-finite"),
        (
            lambda: probability_loyalty([[2.0, 1.0]] * 2, P),
            "teacher's row 0 sums to 3 instead of 1; pass probabilities",
        ),
        (lambda: regression_loyalty([1, 2, 3], [1, 2]), "two vectors of one length"),
        (lambda: regression_loyalty([0.1, 0.1, 0.1], [1, 2, 3]), "the teacher predicts 0.1 everywhere"),
        (lambda: regression_loyalty([1, 2, 3], [4, 4, 4]), "the student predicts 4 everywhere"),
        (lambda: regression_loyalty([], []), "no predictions"),
        (lambda: regression_loyalty([1, float("inf")], [1, 2]), "not finite"),
        (lambda: range_loyalty([1, 2], [1, 2], 0), "score_range has to be positive"),
        (lambda: mean_prediction([]), "no teacher"),
        (lambda: mean_prediction([P, P], [0.5, 0.6]), "sum to 1"),
        (lambda: mean_prediction([P, P], [1.0]), "as many weights"),
        (lambda: mean_prediction([P, [[0.5, 0.5]]]), "the teachers differ in shape"),
        (lambda: loyalty(P, {"average": P}), "reserved names"),
        (lambda: loyalty(P, {"t": P}, targets=[1]), "2 predictions, but targets of shape"),
        (lambda: Loyalty().result(), "no items"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
