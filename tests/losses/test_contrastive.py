"""Pairs against pairs: the public implementation's values and gradients, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.losses.contrastive import pair_contrast

GOLDEN = Path(__file__).parents[1] / "golden" / "hierarchical-self-distillation"


def test_golden_at_every_exit():
    case = dict(np.load(GOLDEN / "exit_contrastive.npz"))
    scale, total = float(case["hp_logit_scale"]), 0.0
    for index, layer in enumerate(case["hp_exit_layers"].tolist()):
        query, match = (torch.from_numpy(case[f"in_{name}"][index]).requires_grad_() for name in ("query", "code"))
        multiplier = torch.tensor(scale, requires_grad=True)
        loss = pair_contrast(query, match, multiplier).mean()
        loss.backward()
        np.testing.assert_allclose(loss.item(), case["out_exit_loss"][index], rtol=1e-5)
        np.testing.assert_allclose(query.grad, case["out_grad_query"][index], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(match.grad, case["out_grad_code"][index], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(multiplier.grad, case["out_grad_scale"][index], rtol=1e-4, atol=1e-6)
        total += layer / int(case["hp_total_layers"]) * loss.item()
    np.testing.assert_allclose(total, case["ref_total_weighted"], rtol=1e-5)


def test_what_cannot_be_contrasted_is_refused():
    with pytest.raises(LimbeckError, match="give at least 2"):
        pair_contrast(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(LimbeckError, match="a vector of zeros has no direction"):
        pair_contrast(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(LimbeckError, match="pairs differ in shape"):
        pair_contrast(torch.ones(2, 3), torch.ones(2, 4))
