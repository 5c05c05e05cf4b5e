"""Queries, keys and values of chosen layers, recorded by hooks while the model computes its attention as it likes.

Recorded are the outputs of the projections, after the per-head norm where a model has one (Qwen3, Gemma 3, OLMo 2) and
before the rotation of positions: the vectors that MiniLMv2 relates. Each of q, k and v is b h t d with its own number
of heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from limbeck.core.check import LimbeckError, require

QKV = tuple[Tensor, Tensor, Tensor]

SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),  # Llama, Qwen, Mistral, Gemma, OPT, BART
    ("query", "key", "value"),  # BERT, RoBERTa, ELECTRA
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT, XLM
    ("q", "k", "v"),  # T5, MPNet
    ("query_proj", "key_proj", "value_proj"),  # DeBERTa-v2
)
FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")  # GPT-2; GPT-NeoX, BLOOM, Falcon; Phi-3; ModernBERT, MPT
HEAD_WIDTH = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")


def blocks(model: Any, stack: str = "decoder") -> list[nn.Module]:
    """The transformer blocks of ``model`` in order; ``stack`` chooses between the two of an encoder-decoder."""
    root = model
    if model.config.is_encoder_decoder:
        root = model.get_encoder() if stack == "encoder" else model.get_decoder()
    found: dict[str, nn.ModuleList] = {}
    for name, module in root.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not inner and any(_attention(block) for block in module):
            found[name] = module
    lists = list(found.values())
    if len(lists) > 1:  # a model of several parts: the one that its configuration counts
        lists = [one for one in lists if len(one) == model.config.get_text_config().num_hidden_layers]
    require(
        len(lists) == 1,
        f"cannot tell the layers of {type(model).__name__}: found {sorted(found) or 'no blocks'} with projections to "
        "queries, keys and values; use a model with attention like that of Llama, GPT-2, GPT-NeoX, BERT or T5",
    )
    return list(lists[0])


def layer_number(layer: int, count: int, what: str) -> int:
    """``layer`` as a number from 0 (embeddings) or 1 up to ``count``; negative ones count from the end."""
    number = layer + count + 1 if layer < 0 else layer
    first = 1 if what == "qkv" else 0
    require(
        first <= number <= count,
        f"{what} of layer {layer}: the model has layers {first} to {count} (or -1 for the last)",
    )
    return number


@contextmanager
def recorded(model: Any, layers: Sequence[int], stack: str = "decoder") -> Iterator[dict[int, QKV]]:
    """While this is open, a forward pass of ``model`` is listened to; afterwards the dictionary holds q, k, v by layer.

    ``layers`` counts from 1, negative numbers from the end. The hooks are gone afterwards, whatever happened.
    """
    result: dict[int, QKV] = {}
    if not layers:
        yield result
        return
    every = blocks(model, stack)
    taps = {number: _Tap.of(every[number - 1]) for number in (layer_number(n, len(every), "qkv") for n in layers)}
    with ExitStack() as handles:
        for tap in taps.values():
            tap.listen(handles)
        yield result
    result.update({number: tap.qkv(model.config) for number, tap in taps.items()})


@dataclass
class _Tap:
    """What the projections of one attention layer said."""

    attention: Any
    names: tuple[str, ...]
    said: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, block: nn.Module) -> _Tap:
        attention = _attention(block)
        if attention is None:
            raise LimbeckError(
                f"the block {type(block).__name__} has no projections to queries, keys and values to record"
            )
        return cls(*attention)

    def listen(self, handles: ExitStack) -> None:
        for name in self.names:

            def hook(_: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
                self.said[name] = output

            handles.enter_context(_removed(getattr(self.attention, name).register_forward_hook(hook)))

    def qkv(self, config: Any) -> QKV:
        width = _head_width(self.attention, config)
        if len(self.names) == 1:
            return _split(self.said[self.names[0]], self._interleaved(), _query_heads(self.attention, config), width)
        q, k, v = (self.said[name] for name in self.names)
        out = getattr(self.attention, "o_proj", None)
        require(
            getattr(out, "in_features", q.shape[-1]) == q.shape[-1],
            f"the query projection of {type(self.attention).__name__} holds more than queries (a gate, most likely), "
            "which cannot be taken apart here; use another model or an objective that needs no queries",
        )
        norms = (getattr(self.attention, name, None) for name in ("q_norm", "k_norm"))
        q, k = (_normed(norm, x, width) for norm, x in zip(norms, (q, k), strict=True))
        return q.transpose(1, 2), k.transpose(1, 2), _heads(v, width).transpose(1, 2)

    def _interleaved(self) -> bool:
        """Whether a fused projection holds q, k, v group by group (or one after the other)."""
        return self.names == ("query_key_value",) or hasattr(self.attention, "multi_query")  # the latter: GPT-BigCode


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _attention(block: nn.Module) -> tuple[nn.Module, tuple[str, ...]] | None:
    """The first module in ``block`` with known projections, and their names; cross-attention comes later."""
    for module in block.modules():
        for names in (*SEPARATE, *((name,) for name in FUSED)):
            if all(isinstance(getattr(module, name, None), nn.Module) for name in names):
                return module, names
    return None


def _head_width(attention: nn.Module, config: Any) -> int:
    """Width of one head."""
    known = (getattr(attention, name, None) for name in HEAD_WIDTH)
    width = next((value for value in known if isinstance(value, int)), None)
    return width or config.hidden_size // config.num_attention_heads


def _query_heads(attention: nn.Module, config: Any) -> int:
    """Number of query heads."""
    known = (getattr(attention, name, None) for name in ("num_heads", "num_attention_heads", "n_heads"))
    return next((value for value in known if isinstance(value, int)), None) or config.num_attention_heads


def _heads(x: Tensor, width: int) -> Tensor:
    """b t (h d) as b t h d."""
    return x.reshape(*x.shape[:-1], -1, width)


def _normed(norm: Any, x: Tensor, width: int) -> Tensor:
    """b t (h d) as b t h d, after the model's norm over all heads or over each."""
    if not isinstance(norm, nn.Module):
        return _heads(x, width)
    whole = getattr(getattr(norm, "weight", None), "shape", None) == x.shape[-1:]
    return _heads(norm(x), width) if whole else norm(_heads(x, width))


def _split(fused: Tensor, interleaved: bool, queries: int, width: int) -> QKV:
    """q, k, v from one projection b t ((h + 2 g) d) with h query heads and g key heads.

    One after the other (q of all heads, then k, then v), or interleaved: for each of the g groups its queries, its key,
    its value.
    """
    heads = _heads(fused, width)
    groups = (heads.shape[2] - queries) // 2
    if interleaved:
        heads = heads.unflatten(2, (groups, queries // groups + 2))
        parts = heads[:, :, :, :-2].flatten(2, 3), heads[:, :, :, -2], heads[:, :, :, -1]
    else:
        parts = heads.split((queries, groups, groups), 2)
    q, k, v = (part.transpose(1, 2) for part in parts)
    return q, k, v
