"""Distances of states, flows and attention against the released code, or its formula where that code errs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.losses.attention import attention_ce, attention_mse, scores_of
from limbeck.losses.divergence import forward_kl, soft_cross_entropy
from limbeck.losses.feature import (
    flow_mse,
    hidden_ce,
    hidden_cosine,
    hidden_mse,
    hidden_pkd,
    kernel_mse,
    logit_mse,
)

CASE = dict(np.load(Path(__file__).parents[1] / "golden" / "distiller-mi-alpha" / "intermediate_losses.npz"))


def arrays(*names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(CASE[f"in_{name}"]).double() for name in names]


MASK = torch.from_numpy(CASE["in_mask"]).bool()
ALL = torch.ones_like(MASK)
PAIRS = (MASK.sum(1) ** 2).sum()


def close(found: torch.Tensor, name: str) -> None:
    np.testing.assert_allclose(found.numpy(), CASE[name], rtol=1e-7)


@pytest.mark.parametrize(("distance", "name"), [(hidden_mse, "hid_mse"), (hidden_ce, "hid_ce"), (hidden_cosine, "cos")])
def test_golden_states(distance, name):
    student, teacher = arrays("state_S", "state_T")
    close(distance(student, teacher).mean(), f"ref_{name}")
    close(distance(student, teacher)[MASK].mean(), f"ref_{name}_mask")


def test_golden_first_tokens_and_logits():
    student, teacher = arrays("state_S", "state_T")
    close(hidden_pkd(student[:, 0], teacher[:, 0]).mean(), "ref_pkd")
    ours, theirs = arrays("logits_S", "logits_T")
    for index, temperature in enumerate(CASE["hp_temperatures"].tolist()):
        for distance, name in ((soft_cross_entropy, "ref_kd_ce"), (forward_kl, "fix_kd_kl"), (logit_mse, "ref_kd_mse")):
            found = distance(ours, theirs, temperature).mean().item()
            np.testing.assert_allclose(found, CASE[name][index], rtol=1e-6, atol=1e-8)


def test_golden_flows_and_kernels():
    first, second, teacher, other, wide, wider = arrays(
        "state_S", "state_S2", "state_T", "state_T2", "state_Tw", "state_Tw2"
    )
    close(flow_mse((first, second), (teacher, other), MASK).mean(), "ref_fsp_mask")
    close(flow_mse((first, second), (teacher, other), ALL).mean(), "ref_fsp")
    close(kernel_mse((first, second), (wide, wider), MASK).sum() / PAIRS, "fix_mmd_mask")
    close(kernel_mse((first, second), (wide, wider), ALL).mean(), "ref_mmd")


def test_golden_attention():
    student, teacher = arrays("att_S", "att_T")
    close(attention_mse(student, teacher, MASK).sum() / PAIRS, "ref_att_mse_mask")
    close(attention_mse(student, teacher, ALL).mean(), "fix_att_mse_nomask")
    close(attention_mse(student, teacher, MASK, "pooled").sum() / PAIRS, "ref_att_mse_sum_mask")
    close(attention_ce(student, teacher, MASK)[MASK].mean(), "fix_att_ce_mask")
    close(attention_ce(student, teacher, MASK, "pooled")[MASK].mean(), "fix_att_ce_mean_mask")
    close(attention_ce(student, teacher, ALL).mean(), "fix_att_ce_nomask")


def test_what_stands_at_padding_does_not_matter_and_nothing_is_finite():
    student, teacher = arrays("att_S", "att_T")
    wild = student.clone()
    hidden = ~(MASK[:, None, :, None] & MASK[:, None, None, :]).expand_as(wild)
    wild[hidden] = 1e4
    for distance in (attention_mse, attention_ce):
        torch.testing.assert_close(distance(wild, teacher, MASK), distance(student, teacher, MASK))
        assert not distance(student, teacher, torch.zeros_like(MASK)).any()


def test_numbers_of_heads():
    student, teacher = arrays("att_S", "att_T")
    with pytest.raises(LimbeckError, match="the student has 1 heads and the teacher 2"):
        attention_mse(student[:, :1], teacher, MASK)
    assert attention_mse(student[:, :1], teacher, MASK, "pooled").shape == (3, 6, 6)
    query, key = torch.randn(1, 4, 3, 5), torch.randn(1, 2, 3, 5)
    expected = query[0, 3] @ key[0, 1].T / 5**0.5
    torch.testing.assert_close(scores_of(query, key)[0, 3], expected)
