"""Sharing what a model has read, and asking its head for nothing but the positions that count."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.check import require


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; the model's own mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextmanager
def head_at(lm: Any, where: Tensor) -> Iterator[None]:
    """Inside, the language-model head sees only the states at the true entries of ``where`` b t: logits are 1 n v.

    The model's own forward runs unchanged around it, so a scale or cap of the logits stays right. Where the states are
    longer than t (a prefix read along), ``where`` means their last t positions.
    """
    head = lm.get_output_embeddings()
    require(
        head is not None, f"{type(lm).__name__} has no language-model head; load a causal or an encoder-decoder model"
    )

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0][:, args[0].shape[1] - where.shape[1] :]
        return (states[where.to(states.device)][None], *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def shareable(cache: Any) -> bool:
    """Whether a cache is keys and values per layer (not a recurrent state), so that it can be copied for every row."""
    parts = _parts(cache) if cache is not None else []
    return bool(parts) and all(hasattr(layer, "batch_repeat_interleave") for part in parts for layer in part.layers)


def repeated(cache: Any, rows: int) -> Any:
    """A copy of a one-row cache for ``rows`` rows.

    The original never changes: a model puts new tensors in the place of a layer's keys and values when it adds to them,
    and the layers here are copies.
    """
    twin = copy.copy(cache)
    if len(_parts(cache)) == 2:
        twin.is_updated = dict(cache.is_updated)
        twin.self_attention_cache = repeated(cache.self_attention_cache, rows)
        twin.cross_attention_cache = repeated(cache.cross_attention_cache, rows)
        return twin
    twin.layers = [_repeated_layer(layer, rows) for layer in cache.layers]
    return twin


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values in a cache; 0 for None."""
    layers = [layer for part in _parts(cache) for layer in part.layers] if cache is not None else []
    tensors = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def _repeated_layer(layer: Any, rows: int) -> Any:
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    twin = copy.copy(layer)
    if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.get_seq_length():
        twin.keys, twin.values = (t.expand(rows, -1, -1, -1) for t in (layer.keys, layer.values))  # views, no copies
    else:
        twin.batch_repeat_interleave(rows)
    return twin


def _parts(cache: Any) -> list[Any]:
    """The caches in a cache: a decoder's own, or self- and cross-attention of an encoder-decoder."""
    both = hasattr(cache, "cross_attention_cache")
    return [cache.self_attention_cache, cache.cross_attention_cache] if both else [cache]
