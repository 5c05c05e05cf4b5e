import pytest
import torch

from limbeck.atlas.rendered import captioned, classified, drawable, missing, render
from limbeck.core.check import LimbeckError


def test_images_depend_on_seed_place_and_text_alone():
    one = render(["România", "Franța"], seed=3)
    assert one.shape == (2, 1, 32, 128)
    assert torch.equal(one, render(["România", "Franța", "Chile"], seed=3)[:2])
    assert not torch.equal(one, render(["România", "Franța"], seed=4))
    assert one.min() >= 0
    assert one.max() <= 1


def test_without_jitter_images_of_one_text_are_equal_and_hold_ink_in_the_middle():
    images = render(["Chile"] * 3, jitter=0)
    assert torch.equal(images[0], images[2])
    assert images[0].max() > 0.9
    assert images[0, 0, :2].sum() == 0
    assert images[0, 0, 16].sum() > 1


def test_long_text_is_drawn_smaller_so_that_it_fits():
    images = render(["Insulele Georgia de Sud"], size=(32, 128), jitter=0)[0, 0]
    assert images[:, -1].sum() == images[:, 0].sum() == 0
    assert images.sum() > 10


def test_captions_are_names_in_the_other_locale():
    images, said = captioned("ro", 12, 1, caption_in="hi")
    assert len(images) == len(said) == 12
    assert all(ord(caption[0]) > 0x900 for caption in said)


def test_classes_are_fixed_and_labels_vary_with_the_seed():
    images, labels, chosen = classified("el", 5, 30, seed=1)
    assert classified("el", 5, 2, seed=2)[2] == chosen
    assert len(set(chosen)) == 5
    assert set(labels.tolist()) == set(range(5))
    assert len(images) == 30
    assert torch.equal(images, classified("el", 5, 30, seed=1)[0])


@pytest.mark.parametrize("locale", ["ro", "ru", "el", "hy", "ka", "vi"])
def test_scripts_that_the_fonts_draw(locale):
    assert len(drawable(locale)) > 100
    assert not any(missing(text) for text in drawable(locale).values())


@pytest.mark.parametrize("locale", ["zh", "ar", "he", "hi"])
def test_other_scripts_are_refused(locale):
    with pytest.raises(LimbeckError, match=f"cannot draw locale {locale!r}"):
        captioned(locale, 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: render([]), "no texts"),
        (lambda: render(["a"], size=(4, 4)), "at least 8 x 8"),
        (lambda: render(["a"], jitter=2), "between 0 and 1"),
        (lambda: render(["中"]), "cannot draw '中'"),
        (lambda: classified("ro", 1), "classes, but got 1"),
    ],
)
def test_bad_requests_are_refused(call, words):
    with pytest.raises(LimbeckError, match=words):
        call()
