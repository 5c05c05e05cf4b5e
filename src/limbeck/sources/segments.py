"""Several queries in one row behind one context, each blind to the others.

One pass over a context then answers many queries. Tokens of *segment* 0 (the context) are seen by everything behind
them; those of any other segment by their own segment alone, whose positions go on where the context ends. A row so
packed gives the numbers that its queries give in rows of their own.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from limbeck.core.check import require


def apart(model: Any, segment: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The arguments that keep segments apart in ``model``, a decoder: ``attention_mask`` b 1 t t and ``position_ids``.

    ``segment`` b t: numbers that never fall along a row, 0 for what all may see; ``mask`` b t: real tokens, which come
    first. Raises for a model that cannot be told positions or whose window is shorter than the row.
    """
    name, length = type(model).__name__, segment.shape[1]
    require(
        "position_ids" in inspect.signature(model.forward).parameters,
        f"{name} takes no position_ids, so it cannot read several queries in one row; ask one query per context",
    )
    window = getattr(model.config, "sliding_window", None)
    require(
        window is None or length <= window,
        f"{name} sees {window} tokens at a time, fewer than the {length} of several queries in a row; ask one query "
        "per context",
    )
    index = torch.arange(length, device=segment.device)
    shared = segment == 0
    seen = (shared[:, None, :] | (segment[:, None, :] == segment[:, :, None])) & mask[:, None, :].bool()
    seen = (seen & (index[None, :] <= index[:, None])) | torch.eye(length, dtype=torch.bool, device=segment.device)
    floats = next(model.parameters()).dtype
    bias = torch.zeros(seen.shape, dtype=floats, device=segment.device).masked_fill(~seen, torch.finfo(floats).min)
    return {"attention_mask": bias[:, None], "position_ids": _positions(segment, mask, index)}


def _positions(segment: Tensor, mask: Tensor, index: Tensor) -> Tensor:
    """Position of each token b t: its place in its segment, counted from the end of segment 0."""
    begins = torch.ones_like(segment, dtype=torch.bool)
    begins[:, 1:] = segment[:, 1:] != segment[:, :-1]
    first = torch.where(begins, index, 0).cummax(1).values
    ahead = ((segment == 0) & mask.bool()).sum(1, keepdim=True)
    return index - first + torch.where(segment > 0, ahead, 0)
