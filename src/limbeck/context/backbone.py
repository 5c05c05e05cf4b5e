"""The transformer inside a distiller, and how its new parts begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.check import LimbeckError, first_line, one_of, require

FIRST = 100  # placeholders start as embeddings of tokens from this id on, past the special ones (released code)


def blank_backbone(said: dict[str, Any], seq2seq: bool, where: Path) -> Any:
    """The backbone of a saved configuration, its weights not yet read."""
    from transformers import AutoConfig, AutoModel

    try:
        model = AutoModel.from_config(AutoConfig.for_model(**said), dtype=torch.float32)
    except (ValueError, TypeError, KeyError) as error:
        raise LimbeckError(f"{where}: the backbone cannot be built: {first_line(error)}") from None
    return as_backbone(model, seq2seq)


def as_backbone(model: Any, seq2seq: bool) -> Any:
    """``model`` without head, and without decoder where the LLM is an encoder-decoder; raises if their kinds differ."""
    kinds = {True: "an encoder-decoder", False: "a decoder"}
    require(
        bool(model.config.is_encoder_decoder) == seq2seq,
        f"the distiller's backbone is {kinds[not seq2seq]} and the LLM {kinds[seq2seq]}; take one of the LLM's family",
    )
    return model.get_encoder() if seq2seq else model.base_model


def first_placeholders(backbone: Any, length: int, init: str, draws: torch.Generator) -> Tensor:
    """``length`` rows: embeddings of random tokens ("vocab"), or N(0, initializer_range) ("random")."""
    one_of(init, ("vocab", "random"), "init")
    table = backbone.get_input_embeddings().weight.detach()
    if init == "random":
        return torch.randn(length, table.shape[1], generator=draws) * _spread(backbone.config)
    first = min(FIRST, table.shape[0] // 2)  # a small vocabulary has fewer special tokens
    chosen = torch.randint(first, table.shape[0], (length,), generator=draws)
    return table[chosen.to(table.device)].float().clone()


def first_projection(width: int, out: int, config: Any, draws: torch.Generator) -> nn.Linear:
    """The projection from the backbone's width to the LLM's, with the backbone's own way to begin."""
    layer = nn.Linear(width, out)
    nn.init.normal_(layer.weight, std=_spread(config), generator=draws)
    nn.init.zeros_(layer.bias)
    return layer


def _spread(config: Any) -> float:
    return getattr(config, "initializer_range", 0.02)
