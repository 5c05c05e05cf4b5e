import pytest
import torch

from limbeck.atlas.digits import captioned_digits, captions, digits
from limbeck.core.check import LimbeckError


def test_splits_are_fixed_disjoint_and_scaled():
    parts = {split: digits(split) for split in ("train", "dev", "test")}
    assert {split: len(labels) for split, (_, labels) in parts.items()} == {"train": 1197, "dev": 300, "test": 300}
    images, labels = parts["train"]
    assert images.shape == (1197, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels[:10].tolist() == list(range(10))
    assert set(parts["test"][1].tolist()) == set(range(10))


def test_the_caller_may_change_what_it_got():
    digits("dev")[0].zero_()
    assert digits("dev")[0].sum() > 0


def test_captions_say_the_digit_in_the_locale():
    labels = torch.tensor([3] * 40)
    said = captions(labels, "ro", seed=1)
    assert said == captions(labels, "ro", seed=1)
    assert all("3" in caption for caption in said)
    assert "3" in said
    assert any(" " in caption for caption in said)
    assert all("۳" in caption for caption in captions(labels, "fa"))
    assert set(captions(labels, "ab")) == {"3"}


def test_every_image_has_a_caption():
    images, said = captioned_digits("de", "test")
    assert len(images) == len(said) == 300


def test_an_unknown_split_is_named():
    with pytest.raises(LimbeckError, match="'tset'; did you mean 'test'"):
        digits("tset")
