"""Vision transformers as sources. The batch gives ``pixels`` b c h w, and ``masked`` b n bool where patches are hidden.

An autoencoder that hides patches (ViT-MAE) hides those that ``masked`` marks, equally many in every image: the batch
decides, not the model's own random numbers, so that a run can be repeated and resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.core.batch import Batch
from limbeck.core.signals import Signals


@dataclass(frozen=True)
class ImageSource:
    """``logits`` b c of a classifier of images."""

    model: Any

    def __call__(self, batch: Batch) -> Signals:
        """Signals of one forward pass."""
        return Signals(logits=self.model(pixel_values=batch["pixels"]).logits)


@dataclass(frozen=True)
class AutoencoderSource:
    """What a ViT-MAE says: ``extra["patches"]`` b n p of the hidden view, and ``pooled`` b d of the whole image.

    ``pooled`` is the state at [CLS] after the final norm, where nothing is hidden. Either may be left out.
    """

    model: Any
    hidden_view: bool = True
    whole_view: bool = True

    def __call__(self, batch: Batch) -> Signals:
        """Signals of one or two forward passes."""
        pixels, extra = batch["pixels"], {}
        if self.hidden_view:
            with keeping(self.model, int((~batch["masked"][0]).sum())):
                # patches with the least noise stay: those that are not masked
                said = self.model(pixel_values=pixels, noise=batch["masked"].float())
            extra = {"patches": said.logits}
        return Signals(pooled=first_state(self.model, pixels) if self.whole_view else None, extra=extra)


def first_state(model: Any, pixels: Tensor) -> Tensor:
    """The state of [CLS], b d, when a ViT-MAE sees all of ``pixels`` b c h w."""
    count = model.vit.embeddings.patch_embeddings.num_patches
    with keeping(model, count):
        order = torch.arange(count, device=pixels.device).expand(len(pixels), -1)
        return model.vit(pixel_values=pixels, noise=order).last_hidden_state[:, 0]


@contextmanager
def keeping(model: Any, kept: int) -> Iterator[None]:
    """While this is open, the autoencoder sees ``kept`` patches of each image and hides the others."""
    config, count = model.vit.embeddings.config, model.vit.embeddings.patch_embeddings.num_patches
    before, config.mask_ratio = config.mask_ratio, 1 - (kept + 0.5) / count  # it rounds down
    try:
        yield
    finally:
        config.mask_ratio = before
