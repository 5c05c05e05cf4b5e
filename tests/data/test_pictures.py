"""Images from files and in memory, and the patches to hide."""

import json

import numpy as np
import pytest
import tiny_autoencoders as tiny
import torch
from PIL import Image

from limbeck.core.check import LimbeckError
from limbeck.data.images import Look, Picture, holds_images, image_batches, look_of, read_image, read_images


def test_a_folder_of_images_and_their_classes(tmp_path):
    pictures = read_images(tiny.write_images(tmp_path / "images", each=3, loose=2))
    assert sorted(str(picture.label) for picture in pictures) == ["None"] * 2 + ["lying"] * 3 + ["standing"] * 3
    assert holds_images(tmp_path / "images")
    assert not holds_images(tmp_path / "none")


def test_an_image_is_cut_to_its_middle_and_resized(tmp_path):
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = (255, 0, 51)
    Image.fromarray(wide).save(tmp_path / "a.png")
    values = read_image(tmp_path / "a.png", 4, 3)
    assert values.shape == (3, 4, 4)
    torch.testing.assert_close(values[:, 1, 1], torch.tensor([1.0, 0.0, 0.2]), atol=0.05, rtol=0)
    assert values.mean() > 0.95 * 0.4
    assert read_image(tmp_path / "a.png", 4, 1).shape == (1, 4, 4)


def test_a_look_standardises_and_is_written_for_image_processors(tmp_path):
    look = Look(2, 3, (0.5, 0.4, 0.3), (0.5, 0.2, 0.1))
    seen = look.pixels(torch.full((3, 2, 2), 0.5))
    torch.testing.assert_close(seen[:, 0, 0], torch.tensor([0.0, 0.5, 2.0]))
    look.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (said["image_mean"], said["size"]) == ([0.5, 0.4, 0.3], {"height": 2, "width": 2})
    assert look_of(tmp_path, tiny.autoencoder(channels=3).config) == Look(8, 3, look.mean, look.std)
    assert look_of(tmp_path / "none", tiny.autoencoder().config) == Look(8, 1)
    Look(2, 3).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["image_std"] == [0.5] * 3


def test_batches_hide_equally_many_patches_anew_each_time():
    pictures = [Picture(torch.full((1, 4, 4), i / 10), "ab"[i % 2] if i else None) for i in range(10)]
    stream = image_batches(pictures, ["a", "b"], Look(4, 1, (0.0,), (1.0,)), 4, patches=9, hidden=0.75)
    one, two = stream.take(2)
    assert one["masked"].sum(1).tolist() == [7] * 4
    assert not torch.equal(one["masked"], two["masked"])
    assert torch.equal(stream.at(0)["masked"], one["masked"])
    for pixels, label, known in zip(one["pixels"], one["labels"], one["labelled"], strict=True):
        number = round(float(pixels[0, 0, 0]) * 10)
        assert int(label) == (number % 2 if number else -100)
        assert bool(known) == (number > 0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"hidden": 1.0}, r"--mask 1\.0: expected a share of the patches between 0 and 1"),
        ({"hidden": 0.95}, "hides all of an image's 4 patches"),
    ],
)
def test_shares_that_make_no_sense(settings, match):
    with pytest.raises(LimbeckError, match=match):
        image_batches([Picture(torch.zeros(1, 4, 4))], [], Look(4, 1), 1, patches=4, **settings)


def test_broken_files_and_folders_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(LimbeckError, match=r"a\.png: expected an image, but it cannot be read"):
        read_image(tmp_path / "a.png", 4, 3)
    (tmp_path / "b").mkdir()
    with pytest.raises(LimbeckError, match="holds no image"):
        read_images(tmp_path / "b")
    with pytest.raises(LimbeckError, match="expected a folder of images"):
        read_images(tmp_path / "a.png")
    with pytest.raises(LimbeckError, match=r"expected an image of shape \(1, 4, 4\)"):
        Look(4, 1).pixels(torch.zeros(1, 5, 4))
