"""Handwritten digits (scikit-learn's copy of the UCI set, 1,797 images of 8 x 8), with captions in any locale."""

from __future__ import annotations

from functools import lru_cache
from random import Random

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from limbeck.atlas.facts import Fact, World, world
from limbeck.atlas.speech import leaf, native
from limbeck.core.check import one_of

# Consecutive parts, since the set is ordered by writer: most hands of the test are not seen in training.
SPLITS = {"train": (0, 1197), "dev": (1197, 1497), "test": (1497, 1797)}


def digits(split: str = "train") -> tuple[Tensor, Tensor]:
    """Images n 1 8 8 in [0, 1] (ink is 1) and their digits n (int64); 1,197 in "train", 300 in "dev" and in "test"."""
    begin, end = SPLITS[one_of(split, SPLITS, "split")]
    images, labels = _all()
    return images[begin:end].clone(), labels[begin:end].clone()


@lru_cache(maxsize=1)
def _all() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.as_tensor(found.images / 16, dtype=torch.float32)[:, None], torch.as_tensor(found.target).long()


def captioned_digits(locale: str, split: str = "train", seed: int = 0) -> tuple[Tensor, list[str]]:
    """Images n 1 8 8 and a caption of each in ``locale`` (see ``captions``)."""
    images, labels = digits(split)
    return images, captions(labels, locale, seed)


def captions(labels: Tensor, locale: str, seed: int = 0) -> list[str]:
    """A caption in ``locale`` for each digit of ``labels`` n: the numeral, or so many of a unit, in the right plural.

    CLDR, as babel carries it, has no number words, so the number itself is in the locale's digits.
    """
    spoken = world(locale)
    return [_caption(spoken, Random(f"captions {locale} {seed} {i}"), int(x), locale) for i, x in enumerate(labels)]


def _caption(spoken: World, rng: Random, digit: int, locale: str) -> str:
    if not spoken.units or rng.random() < 0.5:
        return native(str(digit), locale)
    return leaf(Fact("measure", (digit, rng.choice(spoken.units)), "long"), locale)
