"""DistiLLM's divergences against the released code (golden), and its buffer in a run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llms import build

from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.data.samples import Sample, batch_of
from limbeck.methods.language_models.distillm import Config, distillm, parts

GOLDEN = Path(__file__).parents[2] / "golden" / "kd-objectives-anchors"


@pytest.mark.parametrize("index", range(2))
@pytest.mark.parametrize(
    ("divergence", "value", "gradient"),
    [
        ("skew_forward_kl", "fix_skewed_forward_kl", "ref_grad_skewed_forward_kl"),
        ("skew_reverse_kl", "ref_skewed_reverse_kl", "ref_grad_skewed_reverse_kl"),
    ],
)
def test_golden_losses_and_gradients(divergence, value, gradient, index):
    case = dict(np.load(GOLDEN / "distillm.npz"))
    student = torch.from_numpy(case["in_student_logits"].copy()).requires_grad_()
    teacher, labels = torch.from_numpy(case["in_teacher_logits"]), torch.from_numpy(case["in_labels"])
    batch = {"ids": labels, "targets": labels, "answer": labels != -100}
    cfg = Config(divergence=divergence, alpha=float(case["hp_skew_lams"][index]))
    goal = parts(cfg, lambda: 0.0)[0]
    loss = goal(Signals(logits=student), Signals(logits=teacher), batch, Clock(0, 1)).total(
        {"answer": int(batch["answer"].sum())}
    )
    loss.backward()
    np.testing.assert_allclose(loss.item(), case[value][index], rtol=2e-6)
    np.testing.assert_allclose(student.grad.numpy(), case[gradient][index], atol=1e-6)


def run(**settings) -> dict[str, float]:
    rows = [Sample([4 + i, 5 + i], [6, 7 + i, 1]) for i in range(8)]
    stream = [batch_of(rows[:4]), batch_of(rows[4:])]
    cfg = Config(steps=8, sft_steps=0, new_tokens=3, validate_every=1, **settings)
    return distillm(build("gpt2"), build("gpt2", seed=3), stream, stream[:1], cfg)


def test_nothing_is_written_while_validation_does_not_get_worse():
    said = run(lr=1e-9)
    assert said["phi"] == said["share_written"] == said["share_replayed"] == 0
    assert said["share_data"] == 1


def test_phi_rises_where_it_does_and_a_full_buffer_is_replayed():
    assert run(lr=1e-9, slack=-1.0)["phi"] == pytest.approx(0.8)
    said = run(lr=1e-9, start=1.0, capacity=4, replay="increasing")
    assert said["share_data"] == 0
    assert said["share_written"] > 0
    assert said["share_replayed"] > 0
