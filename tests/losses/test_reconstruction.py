"""Hidden patches: the loss of the library model that the released code trains, and the edges."""

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.losses.feature import hidden_sse
from limbeck.losses.reconstruction import patch_mse, patches

GOLDEN = Path(__file__).parents[1] / "golden" / "selfdistill-further-pretraining"


def golden(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.as_tensor(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}


@pytest.mark.parametrize(("normalised", "wanted"), [(True, "out_loss_norm"), (False, "out_loss_raw")])
def test_golden_loss_of_hidden_patches(normalised, wanted):
    case = golden("mae_loss")
    errors = patch_mse(case["in_pred_patches"], case["in_pixels"], int(case["hp_patch"]), normalised)
    torch.testing.assert_close(errors[case["in_patch_mask"].bool()].mean(), case[wanted], rtol=2e-6, atol=0)


def test_golden_distance_of_features_is_a_sum_over_the_width():
    case = golden("feature_loss")
    student = case["in_student_feature"].clone().requires_grad_()
    loss = hidden_sse(student, case["in_teacher_feature"]).mean()
    loss.backward()
    torch.testing.assert_close(loss.detach(), case["out_loss"], rtol=2e-6, atol=0)
    torch.testing.assert_close(student.grad, case["out_grad"], rtol=2e-6, atol=1e-7)
    assert float(loss.detach()) > 2 * float(case["bad_mean_over_width"])


def test_patches_stand_row_by_row_with_the_channel_last():
    pixels = torch.arange(2 * 4 * 6, dtype=torch.float32).reshape(1, 2, 4, 6)
    cut = patches(pixels, 2)
    assert cut.shape == (1, 6, 8)
    assert cut[0, 1].tolist() == [float(pixels[0, c, r, 2 + k]) for r in (0, 1) for k in (0, 1) for c in (0, 1)]
    assert cut[0, 3, 0] == pixels[0, 0, 2, 0]


def test_a_perfect_guess_costs_nothing_and_a_flat_patch_is_finite():
    pixels = torch.rand(2, 1, 4, 4)
    assert patch_mse(patches(pixels, 2), pixels, 2, normalised=False).max() == 0
    flat = patch_mse(torch.ones(1, 4, 4), torch.zeros(1, 1, 4, 4), 2)
    torch.testing.assert_close(flat, torch.ones(1, 4))


def test_what_does_not_fit_is_refused():
    with pytest.raises(LimbeckError, match="5 x 4 pixels cannot be cut into patches of 2 x 2"):
        patches(torch.zeros(1, 1, 5, 4), 2)
    with pytest.raises(LimbeckError, match="cannot be compared with patches"):
        patch_mse(torch.zeros(1, 4, 3), torch.zeros(1, 1, 4, 4), 2)
