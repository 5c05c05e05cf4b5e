"""Where to compute: one word for it, the same for every command."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from limbeck.core.check import LimbeckError, one_of

Device = Literal["auto", "cpu", "cuda", "mps", "xpu"]


def pick(name: Device = "auto") -> torch.device:
    """The device called ``name``; "auto" is this machine's accelerator if it has one, else the processor.

    Raises ``LimbeckError`` for another word, and for an accelerator that PyTorch does not find here.
    """
    one_of(name, get_args(Device), "--device")
    found = torch.accelerator.current_accelerator(check_available=True)
    here = "cpu" if found is None else found.type
    if name not in ("auto", "cpu", here):
        raise LimbeckError(f"--device {name}: PyTorch finds no {name} here; give auto, which is {here}")
    return torch.device(here if name == "auto" else name)
