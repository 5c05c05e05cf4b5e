"""The mean of several teachers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Readout, Signals
from limbeck.core.terms import Clock, count
from limbeck.objectives.features import hidden
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import over_members, weighted
from limbeck.sources.ensemble import mean_source

GOLDEN = Path(__file__).parents[1] / "golden" / "romanian-multi-teacher-loyalty"


def says(**signals):
    return lambda batch: Signals(**signals)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weights", [None, [0.7, 0.3, 0.0]])
def test_probabilities_are_averaged_not_logits(temperature, weights):
    logits = [draw(2, 3, 5, seed=i) for i in range(3)]
    mean = mean_source([says(logits=z) for z in logits], weights, temperature)({}).logits_at()
    shares = weights or [1 / 3] * 3
    expected = sum(w * (z / temperature).softmax(-1) for w, z in zip(shares, logits, strict=True))
    torch.testing.assert_close((mean / temperature).softmax(-1), expected)


def test_only_the_chosen_positions_are_computed():
    hidden, weight, positions = draw(2, 3, 4), draw(5, 4), torch.tensor([[True, False, False], [False, True, True]])
    sources = [says(readout=Readout(hidden, weight)), says(readout=Readout(hidden + 1, weight))]
    said = mean_source(sources)({})
    torch.testing.assert_close(said.logits_at(positions), said.logits_at()[positions])
    assert said.logits is None


def test_one_teacher_is_itself_and_classes_work():
    z = draw(4, 3)
    torch.testing.assert_close(mean_source([says(logits=z)])({}).logits_at(), z.log_softmax(-1))
    same = mean_source([says(logits=z), says(logits=z)])
    student, data = Signals(logits=z), {"ids": torch.zeros(4, 1)}
    assert soft(on="row")(student, same(data), data, Clock(0, 1))["soft"].sum.abs() < 1e-6


def test_confident_forbidding_and_half_precision_teachers():
    barred = torch.tensor([[0.0, 1.0, -torch.inf]])
    both = mean_source([says(logits=barred), says(logits=barred)])({}).logits_at()
    assert both[0, 2] == -torch.inf
    assert both[0, :2].isfinite().all()
    one = mean_source([says(logits=barred), says(logits=torch.zeros(1, 3))])({}).logits_at()
    assert one[0, 2].exp().item() == pytest.approx(1 / 6)
    sharp = mean_source([says(logits=torch.tensor([[1e4, -1e4]])), says(logits=torch.tensor([[-1e4, 1e4]]))])({})
    torch.testing.assert_close(sharp.logits_at().exp(), torch.tensor([[0.5, 0.5]]))
    assert mean_source([says(logits=barred.bfloat16())])({}).logits_at().dtype == torch.float32


def test_a_teacher_with_nan_is_refused_by_the_objective():
    broken = mean_source([says(logits=torch.zeros(2, 3)), says(logits=torch.full((2, 3), torch.nan))])({})
    with pytest.raises(LimbeckError, match="NaN"):
        soft(on="row")(Signals(logits=torch.zeros(2, 3)), broken, {}, Clock(0, 1))


def test_refusals():
    one = says(logits=torch.zeros(2, 3))
    with pytest.raises(LimbeckError, match="at least one source"):
        mean_source([])
    with pytest.raises(LimbeckError, match="1 weights for 2 sources"):
        mean_source([one, one], [1.0])
    for weights in ([0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0]):
        with pytest.raises(LimbeckError, match="add up to 1"):
            mean_source([one, one], weights)
    with pytest.raises(LimbeckError, match="temperature"):
        mean_source([one], temperature=0.0)
    for other in (torch.zeros(2, 4), torch.zeros(1, 3)):
        with pytest.raises(LimbeckError, match="one tokenizer"):
            mean_source([one, says(logits=other)])({}).logits_at()


@pytest.mark.parametrize("precise", [True, False])
def test_golden_multi_teacher_loss(precise):
    data = dict(np.load(GOLDEN / "multi_teacher_loss.npz"))
    tensors = {key: torch.tensor(value) for key, value in data.items() if key.startswith("in_")}
    if precise:
        tensors = {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}
    tau, weights = float(data["hp_tau"]), data["hp_teacher_weights"].tolist()
    given = {
        "masked": tensors["in_mlm_mask"].bool(),
        "mask": tensors["in_attention_mask"].bool(),
        "targets": tensors["in_labels"],
    }
    student = Signals(logits=tensors["in_student_logits"], hidden={6: tensors["in_student_hidden"]})
    teachers = [
        says(logits=z, hidden={12: h})
        for z, h in zip(tensors["in_teacher_logits"], tensors["in_teacher_hidden"], strict=True)
    ]
    teacher = mean_source(teachers, weights, tau)(given)
    ce, mlm, cos = data["hp_alpha_ce_mlm_cos"].tolist()
    goal = weighted(
        ce=(ce, soft(temperature=tau, on="masked", rescale=True)),
        mlm=(mlm, hard(on="masked")),
        cos=(cos, over_members(hidden("cosine"), weights)),
    )
    terms = goal(student, teacher, given, Clock(0, 1))
    counts = {name: count(given, name) for name in ("masked", "mask")}
    rel = 1e-6  # terms are summed in float32, whatever the losses computed in
    for name in ("ce", "mlm", "cos"):
        assert terms[name].sum.item() / counts[terms[name].unit] == pytest.approx(float(data[f"ref_{name}"]), rel=rel)
    assert terms.total(counts).item() == pytest.approx(float(data["ref_total"]), rel=rel)
    assert abs(terms["ce"].sum.item() / counts["masked"] - float(data["bad_ce_logit_average"])) > 1e-3
    mixture = (teacher.logits_at() / tau).softmax(-1)
    np.testing.assert_allclose(mixture.numpy(), data["ref_mixture_probs"], rtol=1e-12 if precise else 1e-5)
