"""What a context costs: floating-point operations and memory, from a model's configuration and weights.

Analytic, 2 operations per multiply-add: n new tokens behind p cached ones cost 2 W n in the weight matrices W (without
embeddings), 4 L A n (p + n) in the attention of L layers of width A, and 2 d V per position whose logits are wanted.
For a GPT-2 layer of width d that is the familiar 24 n d^2 + 4 n^2 d. Attention is counted in full, as dense kernels
compute it, even where a causal mask discards half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Shape:
    """A stack of layers as its costs see it: weights in matrices, layers, attention and key-value widths, head."""

    weights: int
    layers: int
    attention: int
    keys: int
    head: int = 0

    def flops(self, new: int, past: int = 0, logits: int = 0) -> int:
        """Operations for ``new`` tokens behind ``past`` cached ones, with logits at ``logits`` positions."""
        return 2 * self.weights * new + 4 * self.layers * self.attention * new * (past + new) + 2 * self.head * logits

    def cache_bytes(self, positions: int, element: int = 2) -> int:
        """Bytes of keys and values for ``positions``, ``element`` bytes per number (2: half precision)."""
        return 2 * self.layers * self.keys * positions * element


def prefill(model: Any, context: int, query: int) -> int:
    """Operations to read ``context`` positions and ``query`` tokens without a cache, up to the logits of the last.

    For an encoder-decoder the context goes through the encoder and the query through the decoder, whose cross-attention
    is counted as if every layer projected the encoder's states once per query token.
    """
    if not model.config.is_encoder_decoder:
        return shape_of(model).flops(context + query, logits=1)
    encoder, decoder = shape_of(model.get_encoder()), shape_of(model.get_decoder())
    head = model.get_output_embeddings().weight.numel()
    return encoder.flops(context) + decoder.flops(query, past=context) + 2 * head


def cache_bytes(model: Any, context: int) -> int:
    """Bytes of the keys and values of a context of ``context`` positions, in the model's own precision."""
    stack = model.get_decoder() if model.config.is_encoder_decoder else model
    return shape_of(stack).cache_bytes(context, model.dtype.itemsize)


def shape_of(model: Any) -> Shape:
    """The shape of a decoder-only model, of a transformer without head, or of one stack of an encoder-decoder."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // heads
    keys = (getattr(config, "num_key_value_heads", None) or heads) * size
    head = model.get_output_embeddings()
    return Shape(
        _matrices(model), config.num_hidden_layers, heads * size, keys, 0 if head is None else head.weight.numel()
    )


def _matrices(model: Any) -> int:
    """Entries of all weight matrices that every token passes: not embeddings, not the head."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()
    tables |= {id(head.weight)} if head is not None else set()
    return sum(p.numel() for p in model.parameters() if p.dim() == 2 and id(p) not in tables)
