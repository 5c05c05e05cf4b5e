"""Images as patches, and how well hidden patches are guessed (MAE, He et al., CVPR 2022, arXiv 2111.06377)."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.core.check import LimbeckError, require
from limbeck.losses.divergence import upcast


def patches(pixels: Tensor, size: int) -> Tensor:
    """Square patches of ``size``, row by row, each flattened as (row, column, channel): b c h w -> b n p."""
    b, c, h, w = pixels.shape
    require(
        h % size == 0 and w % size == 0, f"images of {h} x {w} pixels cannot be cut into patches of {size} x {size}"
    )
    cut = pixels.reshape(b, c, h // size, size, w // size, size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // size) * (w // size), size * size * c)


def patch_mse(said: Tensor, pixels: Tensor, size: int, normalised: bool = True) -> Tensor:
    """Per patch, the mean squared difference of ``said`` b n p and the patches of ``pixels`` b c h w -> b n.

    ``normalised``: each patch is first brought to mean 0 and (unbiased) variance 1, with 1e-6 added to the variance.
    """
    truth = patches(upcast(pixels), size)
    if said.shape != truth.shape:
        raise LimbeckError(
            f"{tuple(said.shape)} predicted pixels cannot be compared with patches {tuple(truth.shape)} of the images"
        )
    if normalised:
        truth = (truth - truth.mean(-1, keepdim=True)) / torch.sqrt(truth.var(-1, keepdim=True) + 1e-6)
    return (upcast(said) - truth).square().mean(-1)
