"""Text as images: names of any locale whose script needs no shaping, drawn by Pillow in matplotlib's DejaVu fonts.

DejaVu covers Latin, Greek, Cyrillic, Armenian, Georgian and some more. Scripts that are written from right to left or
whose letters change their form beside others are refused, since how they look would depend on how Pillow was built.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
import torch
from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from limbeck.atlas.names import names
from limbeck.core.check import LimbeckError, require

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic")


def render(texts: list[str], size: tuple[int, int] = (32, 128), seed: int = 0, jitter: float = 1.0) -> Tensor:
    """One image per text: n 1 h w in [0, 1], ink light on dark, ``size`` = (h, w) pixels.

    ``jitter`` scales how much font size, place, slant, contrast and noise vary between images, 0 (not at all) to 1; the
    font varies unless it is 0. Image i depends on the seed, i and its text alone. Long text is drawn smaller.
    """
    require(texts, "render: there are no texts to draw")
    require(min(size) >= 8, f"render: expected images of at least 8 x 8 pixels, but got size={size}")
    require(0 <= jitter <= 1, f"render: expected jitter between 0 and 1, but got {jitter}")
    drawn = [_draw(text, size, Random(f"render {seed} {number}"), jitter) for number, text in enumerate(texts)]
    return torch.from_numpy(np.stack(drawn))[:, None]


def captioned(
    locale: str, n: int = 1000, seed: int = 0, caption_in: str | None = None, size: tuple[int, int] = (32, 128)
) -> tuple[Tensor, list[str]]:
    """Images n 1 h w of names in ``locale``, and as captions the same names in ``caption_in`` (default: ``locale``)."""
    here, there = drawable(locale), _all_names(caption_in or locale)
    keys = [key for key in here if key in there]
    rng = Random(f"captioned {locale} {caption_in or locale} {seed}")
    chosen = [rng.choice(keys) for _ in range(n)]
    return render([here[key] for key in chosen], size, seed), [there[key] for key in chosen]


def classified(
    locale: str, classes: int = 10, n: int = 1000, seed: int = 0, size: tuple[int, int] = (32, 128)
) -> tuple[Tensor, Tensor, list[str]]:
    """Images n 1 h w of ``classes`` names, the class of each n (int64), and the names.

    The seed draws the images; which names are the classes depends on the locale and their number alone.
    """
    known = sorted(set(drawable(locale).values()))
    require(2 <= classes <= len(known), f"classified: expected 2 to {len(known)} classes, but got {classes}")
    chosen = Random(f"classes {locale}").sample(known, classes)
    rng = Random(f"classified {locale} {seed}")
    labels = [rng.randrange(classes) for _ in range(n)]
    return render([chosen[label] for label in labels], size, seed), torch.tensor(labels), chosen


def drawable(locale: str) -> dict[str, str]:
    """Key -> name of the territories and languages of ``locale`` that the fonts can draw, up to 24 characters long."""
    found = {key: text for key, text in _all_names(locale).items() if len(text) <= 24 and not missing(text)}
    if len(found) < 20:
        example = next(iter(_all_names(locale).values()), "")
        raise LimbeckError(
            f"rendered text: the fonts cannot draw locale {locale!r} (for instance {example!r}); "
            "use a locale in Latin, Greek, Cyrillic, Armenian or Georgian script"
        )
    return found


def missing(text: str) -> set[str]:
    """The characters of ``text`` that some font lacks or that need shaping."""
    return {
        char for char in text if ord(char) not in _covered() or unicodedata.bidirectional(char) in ("R", "AL", "NSM")
    }


def _all_names(locale: str) -> dict[str, str]:
    found = [(category, names(category, locale)) for category in ("territory", "language")]
    return {f"{category} {key}": text for category, table in found for key, text in table.items()}


@lru_cache(maxsize=1)
def _covered() -> frozenset[int]:
    tables = [set(FT2Font(_path(font)).get_charmap()) for font in FONTS]
    return frozenset(set.intersection(*tables))


def _path(font: str) -> str:
    return str(Path(get_data_path()) / "fonts" / "ttf" / f"{font}.ttf")


@lru_cache(maxsize=256)
def _font(name: str, height: int) -> ImageFont.FreeTypeFont:
    # The basic layout is there in every build of Pillow and places glyphs the same in all of them.
    return ImageFont.truetype(_path(name), height, layout_engine=ImageFont.Layout.BASIC)


def _draw(text: str, size: tuple[int, int], rng: Random, jitter: float) -> np.ndarray:
    """One image h w, float32."""
    bad = missing(text)
    require(not bad, f"render: the fonts cannot draw {''.join(sorted(bad))!r} of {text!r}")
    name = rng.choice(FONTS) if jitter else FONTS[0]
    font = _fitting(text, name, size, share=0.7 - jitter * 0.25 * rng.random())
    left, top, right, bottom = font.getbbox(text)
    slack = [(room - used) / 2 for room, used in ((size[1], right - left), (size[0], bottom - top))]
    x, y = (centre + jitter * max(centre, 0) * rng.uniform(-0.8, 0.8) for centre in slack)
    image = Image.new("L", (size[1], size[0]))
    ImageDraw.Draw(image).text((x - left, y - top), text, fill=255, font=font)
    image = image.rotate(jitter * rng.uniform(-3, 3), resample=Image.Resampling.BILINEAR)
    return _lit(np.asarray(image, dtype=np.float32) / 255, rng, jitter)


def _fitting(text: str, name: str, size: tuple[int, int], share: float) -> ImageFont.FreeTypeFont:
    """The font at ``share`` of the image's height, or smaller, so that the text fits."""
    height = max(4, round(size[0] * share))
    while height > 4 and (box := _font(name, height).getbbox(text)) and _too_big(box, size):
        height -= 1
    return _font(name, height)


def _too_big(box: tuple[float, ...], size: tuple[int, int]) -> bool:
    return box[2] - box[0] > size[1] - 4 or box[3] - box[1] > size[0] - 4


def _lit(ink: np.ndarray, rng: Random, jitter: float) -> np.ndarray:
    """Ink h w on a ground, with contrast and noise drawn."""
    ground, full = jitter * 0.3 * rng.random(), 1 - jitter * 0.3 * rng.random()
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 0.04 * jitter, ink.shape).astype(np.float32)
    return np.clip(ground + ink * (full - ground) + noise, 0, 1)
