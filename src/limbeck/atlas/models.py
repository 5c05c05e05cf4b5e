"""The models that ship with limbeck, as folders of the package: any loader of transformers reads them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from limbeck.core.check import LimbeckError

WEIGHTS = Path(str(files("limbeck.atlas"))) / "weights"


def shipped(name: str) -> Path:
    """The folder of the shipped model ``name``."""
    folder = WEIGHTS / name
    if not (folder / "config.json").is_file():
        have = sorted(p.parent.name for p in WEIGHTS.glob("*/config.json"))
        raise LimbeckError(f"no model named {name!r} ships with limbeck; there are {', '.join(have) or 'none'}")
    return folder
