"""Tiny ViT-MAEs, batches for them, and a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from limbeck.core.batch import Batch
from limbeck.models.images import new_autoencoder

PATCHES = 16


def autoencoder(seed: int = 0, width: int = 8, layers: int = 1, channels: int = 1) -> Any:
    torch.manual_seed(seed)
    model = new_autoencoder(layers, width, 8, 2, channels, heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
    return model


def batches(seed: int, channels: int = 1, hidden: int = 12) -> list[Batch]:
    """Ten batches of 8 images."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(10):
        ranks = torch.rand(8, PATCHES, generator=generator).argsort(1).argsort(1)
        labels = torch.randint(3, (8,), generator=generator)
        pixels = torch.rand(8, channels, 8, 8, generator=generator)
        made.append({"pixels": pixels, "masked": ranks < hidden, "labels": labels, "labelled": labels >= 0})
    return made


def write_images(folder: Path, each: int = 14, loose: int = 4) -> str:
    """Stripes, lying and standing, in a folder for each, and some without a class."""
    rng = np.random.default_rng(0)
    for number in range(2 * each + loose):
        stripes = np.tile(np.arange(12) // 2 % 2 * 200, (12, 1)) + rng.integers(0, 50, (12, 12))
        image = Image.fromarray((stripes if number % 2 else stripes.T).astype(np.uint8))
        name = ("lying", "standing")[number % 2] if number < 2 * each else "."
        (folder / name).mkdir(parents=True, exist_ok=True)
        image.convert("RGB").save(folder / name / f"{number}.png")
    return str(folder)
