"""Vision transformers: autoencoders that hide patches (ViT-MAE), loaded or new, and classifiers on their encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.check import LimbeckError, require
from limbeck.models.load import load_config, load_network

MODEL_TYPE = "vit_mae"
ENCODER = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
    "attention_probs_dropout_prob initializer_range layer_norm_eps image_size patch_size num_channels qkv_bias"
)


def load_autoencoder(name: str | Path) -> Any:
    """The ViT-MAE with its decoder that ``name`` stands for, a folder or a Hub id, in eval mode."""
    kind = load_config(name).model_type
    require(
        kind == MODEL_TYPE,
        f"{str(name)!r} is of the type {kind}, but images need a masked autoencoder, such as facebook/vit-mae-base",
    )
    return load_network(name, "pretraining")


def new_autoencoder(layers: int, width: int, image: int, patch: int, channels: int, heads: int = 4) -> Any:
    """A ViT-MAE of random weights for square images; its decoder has one layer of the same width."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    require(width % 4 == 0 and width % heads == 0, f"a ViT-MAE's width has to be a multiple of 4 and of {heads} heads")
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=2 * width,
            image_size=image,
            patch_size=patch,
            num_channels=channels,
            decoder_hidden_size=width,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=heads,
            decoder_intermediate_size=2 * width,
            norm_pix_loss=True,
        )
    )
    # transformers 5 leaves places and [CLS] of a new model at zero, where it could not tell patches apart
    waves = plane_waves(image // patch, width)
    for places in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        places.data[0, 1:] = waves
    torch.nn.init.normal_(model.vit.embeddings.cls_token, std=model.config.initializer_range)
    return model.eval()


def plane_waves(side: int, width: int) -> Tensor:
    """Places of a square of patches, row by row: sines and cosines of the column, then of the row; side^2 x width.

    Vaswani et al. 2017, section 3.5, in two dimensions as in MAE's code (2111.06377).
    """
    rates = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    turns = torch.arange(side)[:, None] * rates
    line = torch.cat([turns.sin(), turns.cos()], 1)
    return torch.cat([line.repeat(side, 1), line.repeat_interleave(side, 0)], 1)


def image_classifier(autoencoder: Any, classes: Sequence[str]) -> Any:
    """A ViT with the encoder of ``autoencoder``, copied, and an untrained linear head on [CLS], in eval mode."""
    from transformers import ViTConfig, ViTForImageClassification

    ours = autoencoder.config
    names = [name for name in ENCODER.split() if hasattr(ours, name)]
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(classes)),
        "label2id": {name: i for i, name in enumerate(classes)},
    }
    model = ViTForImageClassification(ViTConfig(**{name: getattr(ours, name) for name in names}, **labels))
    found = model.vit.load_state_dict(autoencoder.vit.state_dict(), strict=False)
    if odd := [*found.missing_keys, *found.unexpected_keys]:
        raise LimbeckError(f"{type(model).__name__} cannot take over {odd[0]} of {type(autoencoder).__name__}")
    return model.to(next(autoencoder.parameters()).device).eval()
