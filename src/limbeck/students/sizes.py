"""The 24 sizes of BERT's miniatures (Turc et al. 2019, 1908.08962), by name."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from limbeck.core.check import require

LAYERS, WIDTHS = (2, 4, 6, 8, 10, 12), (128, 256, 512, 768)
NAMED = {
    "bert-tiny": (2, 128),
    "bert-mini": (4, 256),
    "bert-small": (4, 512),
    "bert-medium": (8, 512),
    "bert-base": (12, 768),
}
VOCABULARY, POSITIONS = 30522, 512


class Size(NamedTuple):
    """Layers and width; a head is 64 wide and the feed-forward layer four times the width."""

    layers: int
    width: int


MINIATURES = {f"bert-{layers}x{width}": Size(layers, width) for layers in LAYERS for width in WIDTHS}
MINIATURES |= {name: Size(*size) for name, size in NAMED.items()}


def miniature(name: str) -> Size | None:
    """The size that ``name`` stands for: ``bert-mini``, ``bert-4x256`` or ``bert_uncased_L-4_H-256_A-4``; else None."""
    text = name.strip().lower()
    if text in MINIATURES:
        return MINIATURES[text]
    found = re.fullmatch(r"(?:bert_)?(?:uncased_)?l-(\d+)_h-(\d+)(?:_a-(\d+))?", text)
    if found is None:
        return None
    size = Size(int(found[1]), int(found[2]))
    heads = int(found[3] or size.width // 64)
    known = size in MINIATURES.values() and heads * 64 == size.width
    require(known, f"{name}: the miniatures have layers {LAYERS}, widths {WIDTHS} and width / 64 heads")
    return size


def miniature_config(size: Size, vocabulary: int = VOCABULARY, positions: int = POSITIONS, **settings: Any) -> Any:
    """BERT's configuration at ``size``."""
    from transformers import BertConfig

    layers, width = size
    shape: dict[str, Any] = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": width // 64}
    shape |= {"vocab_size": vocabulary, "max_position_embeddings": positions, "intermediate_size": 4 * width}
    return BertConfig(**shape, **settings)


def parameters(size: Size, vocabulary: int = VOCABULARY, positions: int = POSITIONS, types: int = 2) -> int:
    """How many parameters a miniature has, pooler included."""
    layers, width = size
    embeddings = (vocabulary + positions + types + 2) * width
    return embeddings + layers * (12 * width**2 + 13 * width) + width * (width + 1)
