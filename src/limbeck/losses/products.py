"""The three matrix products around an output layer, with float32 (or float64) logits whatever the weights are held in.

``out`` says in which precision results are kept. Weights of that precision are multiplied as they are. Others are
taken up piece by piece, so that no second copy of the layer is made; on CUDA bfloat16 goes to the tensor cores as it
is and only the result is float32. (Not float16: most entries of a gradient of a softmax are too small for it.)

On CPUs float32 logits are made by oneDNN where PyTorch has it, piece by piece again: 1.5 times as fast as ``torch.mm``
for a hundred rows and a large vocabulary (AMD Zen 4, one thread and two), because ``mm`` first turns the weights round.
The other two products are as fast either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

TILE = 8192
"""Rows of the vocabulary that are taken at a time."""


def logits(hidden: Tensor, weight: Tensor, out: Tensor) -> None:
    """``out`` n v = hidden n d @ weight v d transposed."""
    if _tensor_cores(weight, out):
        out.copy_(torch.mm(hidden.to(weight.dtype), weight.t(), out_dtype=out.dtype))
        return
    hidden, linear = hidden.to(out.dtype), _onednn()
    if linear is not None and out.device.type == "cpu" and out.dtype == torch.float32:
        for tile in _tiles(weight):
            out[:, tile] = linear(hidden, weight[tile].to(out.dtype))
    elif weight.dtype == out.dtype:
        torch.mm(hidden, weight.t(), out=out)
    else:
        for tile in _tiles(weight):
            torch.mm(hidden, weight[tile].to(out.dtype).t(), out=out[:, tile])


def to_hidden(gradient: Tensor, weight: Tensor, out: Tensor) -> None:
    """``out`` n d = gradient n v @ weight v d."""
    if weight.dtype == out.dtype:
        torch.mm(gradient, weight, out=out)
    elif _tensor_cores(weight, out):
        out.copy_(torch.mm(gradient.to(weight.dtype), weight, out_dtype=out.dtype))
    else:
        out.zero_()
        for tile in _tiles(weight):
            out.addmm_(gradient[:, tile], weight[tile].to(out.dtype))


def to_weight(gradient: Tensor, hidden: Tensor, weight: Tensor, out: Tensor, first: bool) -> None:
    """``out`` v d += gradient n v transposed @ hidden n d; ``first``: what ``out`` held does not count."""
    if _tensor_cores(weight, out):
        if first:
            out.zero_()
        hidden = hidden.to(weight.dtype)
        for tile in _tiles(weight):
            out[tile] += torch.mm(gradient[:, tile].to(weight.dtype).t(), hidden, out_dtype=out.dtype)
    elif first:
        torch.mm(gradient.t(), hidden.to(out.dtype), out=out)
    else:
        out.addmm_(gradient.t(), hidden.to(out.dtype))


def _tensor_cores(weight: Tensor, out: Tensor) -> bool:
    return weight.is_cuda and weight.dtype == torch.bfloat16 and out.dtype == torch.float32


def _tiles(weight: Tensor) -> Iterator[slice]:
    return (slice(at, at + TILE) for at in range(0, weight.shape[0], TILE))


@cache
def _onednn() -> Callable[[Tensor, Tensor], Tensor] | None:
    """x @ weight transposed by oneDNN, as ``torch.compile`` calls it; None where this PyTorch cannot."""

    def linear(x: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    try:
        x, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
        return linear if torch.backends.mkldnn.enabled and torch.equal(linear(x, weight), x @ weight.t()) else None
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
