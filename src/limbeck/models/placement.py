"""Where and how a model that is only read is held: quantised, or spread over devices."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch

from limbeck.core.check import one_of, require
from limbeck.core.stage import freeze
from limbeck.models.load import Dtype

Held = Dtype | Literal["auto", "int8", "nf4"]
QUANTISED = ("int8", "nf4")
MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def held(dtype: Held = "float32", device_map: str | None = None) -> dict[str, Any]:
    """Arguments of ``load_model`` for a model held as ``dtype`` says.

    "int8" and "nf4" quantise while loading by bitsandbytes; a checkpoint that was quantised before loads as it is, with
    "auto". ``device_map`` "auto" spreads the model over all devices, and memory and disk where they do not suffice.
    """
    settings: dict[str, Any] = {"dtype": "auto" if dtype in QUANTISED else dtype}
    if device_map is not None:
        settings["device_map"] = one_of(device_map, MAPS, "--teacher-map")
    if dtype in QUANTISED:
        require(find_spec("bitsandbytes"), f"{dtype} needs bitsandbytes; install it with pip install bitsandbytes")
        settings["quantization_config"] = _quantisation(dtype)
    return settings


def settled(model: Any) -> bool:
    """Whether ``model`` has its place and may not be moved: quantised, or spread over devices."""
    return bool(getattr(model, "is_quantized", False) or getattr(model, "hf_device_map", None))


def placed(model: Any, device: torch.device) -> Any:
    """``model`` frozen and on ``device``; one that has its place stays there."""
    return freeze(model) if settled(model) else freeze(model).to(device)


def _quantisation(dtype: str) -> Any:
    from transformers import BitsAndBytesConfig

    if dtype == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )  # as QLoRA, arXiv 2305.14314
