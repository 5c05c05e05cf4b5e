"""Vectors of texts at several depths of one encoder; cut at any of them it is a smaller encoder of texts."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.save import load_tensors, save_tensors, write_json
from limbeck.core.signals import Signals
from limbeck.models.load import load_network
from limbeck.students.exits import check_cuts
from limbeck.students.layers import keep_layers, shape

DENSE = "2_Dense"
PARTS = {"": "Transformer", "1_Pooling": "Pooling", DENSE: "Dense", "3_Normalize": "Normalize"}


class ExitVectors(nn.Module):
    """``encoder``, a model without a head, read after the layers ``exits``: its first token's state, through a
    projection of the exit's own.

    Projections begin as identities: before training, the vectors are the states.
    """

    def __init__(self, encoder: Any, exits: Sequence[int]) -> None:
        super().__init__()
        width = shape(encoder)[1]
        check_cuts(encoder, min(exits))
        self.encoder, self.exits = encoder, tuple(exits)
        self.projections = nn.Parameter(torch.eye(width).repeat(len(self.exits), 1, 1))  # exits d d

    def vectors(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """b d for each exit, not normalised."""
        states = self.encoder(ids, mask.long(), output_hidden_states=True).hidden_states
        return [states[i][:, 0] @ weight.T for i, weight in zip(self.exits, self.projections, strict=True)]

    def forward(self, batch: Batch) -> Signals:
        """``exits``: one Signals each with ``pooled`` b d of the queries and ``extra["match"]`` b d of the matches."""
        queries = self.vectors(batch["ids"], batch["mask"])
        matches = self.vectors(batch["match_ids"], batch["match_mask"])
        pairs = zip(queries, matches, strict=True)
        return Signals(exits=tuple(Signals(pooled=query, extra={"match": match}) for query, match in pairs))

    def at_exit(self, layer: int) -> TextEncoder:
        """The encoder of the first ``layer`` layers with the exit's projection, by itself."""
        require(layer in self.exits, f"exit {layer}: the encoder has exits after layers {list(self.exits)}")
        whole = layer == shape(self.encoder)[0]
        small = deepcopy(self.encoder) if whole else keep_layers(self.encoder, range(layer))
        return TextEncoder(small, self.projections[self.exits.index(layer)].detach().clone()).eval()


class TextEncoder(nn.Module):
    """Texts to vectors of length 1: the first token's state of ``encoder``, times ``weight`` d d."""

    def __init__(self, encoder: Any, weight: Tensor) -> None:
        super().__init__()
        self.encoder, self.weight = encoder, nn.Parameter(weight)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors b d of ``ids`` b t, real where ``mask`` b t is true."""
        states = self.encoder(ids, mask.long()).last_hidden_state
        return normalize(states[:, 0] @ self.weight.T, dim=-1)

    def save_pretrained(self, folder: str | Path) -> None:
        """An ordinary encoder and, in the folders that sentence-transformers reads, pooling and projection."""
        folder, width = Path(folder), len(self.weight)
        self.encoder.save_pretrained(folder)
        save_tensors(folder / DENSE / "model.safetensors", {"linear.weight": self.weight.detach()})
        dense = {"in_features": width, "out_features": width, "bias": False}
        write_json(folder / DENSE / "config.json", dense | {"activation_function": "torch.nn.modules.linear.Identity"})
        pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
        write_json(folder / "1_Pooling" / "config.json", pooling)
        kinds = [(i, path, f"sentence_transformers.models.{kind}") for i, (path, kind) in enumerate(PARTS.items())]
        write_json(folder / "modules.json", [{"idx": i, "name": str(i), "path": p, "type": k} for i, p, k in kinds])
        (folder / "3_Normalize").mkdir(exist_ok=True)


def load_text_encoder(folder: str | Path) -> TextEncoder:
    """The encoder that ``TextEncoder.save_pretrained`` wrote, in eval mode."""
    weights, _ = load_tensors(Path(folder) / DENSE / "model.safetensors")
    return TextEncoder(load_network(folder, "base"), weights["linear.weight"]).eval()


@torch.no_grad()
def encode(model: ExitVectors, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Vectors of length 1, b d for each exit, without gradients."""
    return [normalize(vectors, dim=-1) for vectors in model.vectors(ids, mask)]
