"""The two encoders that ship with limbeck: small BERTs with one tokenizer, trained on different text.

``quality.json`` beside the weights says how they were trained (``train_encoder``) and what was measured on text that
neither has seen.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from limbeck.core.check import LimbeckError, one_of

ENCODERS = ("a", "b")


def encoder_folder(which: str = "a") -> Path:
    """The folder of encoder ``which`` ("a" or "b"), as ``from_pretrained`` and the command line take it."""
    one_of(which, ENCODERS, "encoder")
    folder = Path(str(files("limbeck.atlas"))) / "weights" / f"encoder-{which}"
    if not (folder / "model.safetensors").is_file():
        raise LimbeckError(
            f"encoder {which!r}: expected weights in {folder}, but there are none; make them with "
            "python -m limbeck.atlas.train_encoder, or install limbeck again"
        )
    return folder


def load_encoder(which: str = "a") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Encoder ``which`` ("a" or "b") in fp32 and eval mode, and the tokenizer that both share."""
    folder = encoder_folder(which)
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
