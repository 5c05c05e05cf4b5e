"""Images with a class, in memory or in a folder of files, and batches of them with patches to hide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.core.batch import IGNORE, Batch
from limbeck.core.check import LimbeckError, first_line, require
from limbeck.core.save import read_json, write_json
from limbeck.data.read import existing
from limbeck.data.stream import Batches

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PROCESSOR = "preprocessor_config.json"
CACHE = 2**28  # bytes of images that are kept in memory, so that a small set is read once


class Picture(NamedTuple):
    """An image, c h w or a file, and the name of its class; None where nobody has said it."""

    image: Tensor | Path
    label: str | None = None


@dataclass(frozen=True)
class Look:
    """How a model sees images: squares of ``size`` pixels in ``channels`` (1 grey, 3 RGB), standardised.

    ``mean`` and ``std`` are of values in [0, 1], one or one per channel.
    """

    size: int
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def pixels(self, image: Tensor | Path) -> Tensor:
        """The image as c h w; a file is read, cut to a square around its middle and resized."""
        values = read_image(image, self.size, self.channels) if isinstance(image, Path) else image
        wanted = (self.channels, self.size, self.size)
        require(values.shape == wanted, f"expected an image of shape {wanted}, but got {tuple(values.shape)}")
        mean, std = (torch.tensor(part, dtype=torch.float32)[:, None, None] for part in (self.mean, self.std))
        return (values - mean) / std

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what image processors of transformers read."""
        said: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "do_normalize": True}
        said |= {"do_rescale": True, "rescale_factor": 1 / 255, "resample": 3}
        said |= {"size": {"height": self.size, "width": self.size}}
        for name, values in (("image_mean", self.mean), ("image_std", self.std)):
            said[name] = list(values) * (self.channels // len(values))
        write_json(Path(folder) / PROCESSOR, said)


def look_of(folder: str | Path, config: Any) -> Look:
    """How the model of ``config`` sees, with the mean and deviation that its folder names, or 0.5 and 0.5."""
    path = Path(folder) / PROCESSOR
    said = read_json(path) if path.is_file() else {}
    mean, std = (tuple(said.get(name) or (0.5,)) for name in ("image_mean", "image_std"))
    return Look(config.image_size, config.num_channels, mean, std)


def read_image(path: Path, size: int, channels: int) -> Tensor:
    """The image in a file, cut to a square around its middle and resized: c h w in [0, 1]."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
            values = np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise LimbeckError(f"{path}: expected an image, but it cannot be read: {first_line(error)}") from None
    return torch.from_numpy(values.reshape(size, size, channels) / 255).permute(2, 0, 1)


def read_images(folder: str | Path) -> list[Picture]:
    """The images of ``folder``: those in a folder within it have its name as class, those beside have none."""
    folder = existing(folder)
    require(folder.is_dir(), f"{folder}: expected a folder of images, with a folder in it for each class")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    require(files, f"{folder}: the folder holds no image ({', '.join(SUFFIXES)})")
    return [Picture(path, None if path.parent == folder else path.relative_to(folder).parts[0]) for path in files]


def holds_images(folder: str | Path) -> bool:
    """Whether ``folder`` is one with images in it."""
    path = Path(folder)
    return path.is_dir() and any(file.suffix.lower() in SUFFIXES for file in path.rglob("*"))


def image_batches(
    pictures: Sequence[Picture],
    classes: Sequence[str],
    look: Look,
    batch: int,
    seed: int = 0,
    patches: int = 0,
    hidden: float = 0.75,
) -> Batches:
    """Batches ``pixels`` b c h w, ``labels`` b (``IGNORE`` without one), ``labelled`` b and ``masked`` b ``patches``.

    ``masked`` marks the patches of each image to be hidden: the share ``hidden``, rounded up, drawn anew each time.
    """
    require(pictures, "there are no images; check the data")
    require(0 < hidden < 1, f"--mask {hidden}: expected a share of the patches between 0 and 1")
    kept = int(patches * (1 - hidden))
    require(not patches or kept, f"--mask {hidden}: hides all of an image's {patches} patches; lower it")
    numbers = {name: index for index, name in enumerate(classes)}
    load = lru_cache(max(1, CACHE // (4 * look.channels * look.size**2)))(look.pixels)

    def collate(rows: list[Picture], rng: np.random.Generator) -> Batch:
        labels = torch.tensor([numbers.get(row.label or "", IGNORE) for row in rows])
        ranks = torch.from_numpy(rng.random((len(rows), patches))).argsort(1).argsort(1)
        made = {"pixels": torch.stack([load(row.image) for row in rows]), "labels": labels}
        return made | {"labelled": labels != IGNORE, "masked": ranks >= kept}

    return Batches(list(pictures), collate, batch, seed, draws=True)
