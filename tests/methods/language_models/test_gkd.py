"""GKD's objective against TRL (golden)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.methods.language_models.gkd import Config, parts

GOLDEN = Path(__file__).parents[2] / "golden" / "kd-objectives-anchors"


@pytest.mark.parametrize("index", range(5))
def test_golden_losses_and_gradients(index):
    case = dict(np.load(GOLDEN / "gkd_jsd.npz"))
    student = torch.from_numpy(case["in_student_logits"].copy()).requires_grad_()
    teacher, labels = torch.from_numpy(case["in_teacher_logits"]), torch.from_numpy(case["in_labels"])
    batch = {"ids": labels, "targets": labels, "answer": labels != -100}
    goal = parts(Config(beta=float(case["hp_betas"][index])))[0]
    loss = goal(Signals(logits=student), Signals(logits=teacher), batch, Clock(0, 1)).total(
        {"answer": int(batch["answer"].sum())}
    )
    loss.backward()
    assert case["hp_temperatures"][0] == 1.0
    np.testing.assert_allclose(loss.item(), case["ref_batchmean"][index, 0], rtol=2e-6)
    np.testing.assert_allclose(student.grad.numpy(), case["ref_grad_batchmean"][index, 0], atol=1e-6)


def test_the_ordinary_loss_counts_the_data_s_own_text_only():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 2, -100], [3, 4, 5]])
    answer = targets != -100
    reference = answer & torch.tensor([[True], [False]])
    batch = {"ids": targets, "targets": targets, "answer": answer, "reference": reference}
    terms = parts(Config(hard=0.5))[0](Signals(logits=logits), Signals(logits=logits), batch, Clock(0, 1))
    wanted = -logits.log_softmax(-1)[0, [0, 1], [1, 2]].sum()
    assert terms["hard"].sum.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert terms["hard"][1:] == ("reference", 0.5)
    assert terms["soft"].sum.item() == pytest.approx(0, abs=1e-6)
