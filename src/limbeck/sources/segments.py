"""Several texts in one row, each blind to the others: queries behind one context, or documents packed to save padding.

Tokens of *segment* 0 (the context) are seen by everything behind them; those of any other segment by their own segment
alone, whose positions go on where the context ends, or begin at 0 where there is none. A row so packed gives the
numbers that its texts give in rows of their own; ``check_apart`` tries it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from limbeck.core.check import require

ALONE = "give each text a row of its own"

WINDOWS = ("sliding_window", "window_size", "attention_chunk_size", "attention_window_size")

PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Relative to the largest number of a trial; half precisions: 0.02. What one text tells the next is above that."""


def apart(model: Any, segment: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The arguments that keep segments apart in ``model``, a decoder: ``attention_mask`` b 1 t t and ``position_ids``.

    ``segment`` b t: numbers that never fall along a row, 0 for what all may see; ``mask`` b t: real tokens, which come
    first. Raises for a model that cannot be told positions, takes no mask of its own, or whose window is shorter than
    the row.
    """
    name, length = type(model).__name__, segment.shape[1]
    require(
        "position_ids" in inspect.signature(model.forward).parameters,
        f"{name} takes no position_ids, so it cannot read several texts in one row; {ALONE}",
    )
    window, kernel = narrowest(model.config), getattr(model.config, "_attn_implementation", None)
    require(not getattr(model.config, "alibi", False), f"{name} adds positions to attention (ALiBi) by itself; {ALONE}")
    require(
        window is None or length <= window,
        f"{name} sees {window} tokens at a time, fewer than the {length} of several texts in a row; {ALONE}",
    )
    require(
        kernel in (None, "sdpa", "eager"),
        f"{name} attends by {kernel}, which cannot keep several texts in a row apart; load it with "
        f"attn_implementation='sdpa', or {ALONE}",
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
    return (index - first + torch.where(segment > 0, ahead, 0)).masked_fill(~mask.bool(), 0)


def narrowest(config: Any) -> int | None:
    """The fewest tokens that some layer sees at a time, by whichever name a family has for it; None without a limit."""
    widths = (getattr(config, name, None) for name in WINDOWS)
    return min((width for width in widths if isinstance(width, int)), default=None)


@torch.no_grad()
def check_apart(model: Any) -> None:
    """Raise unless ``model`` gives a text the same numbers behind another text of its row as alone.

    Tried on seven made-up tokens, without dropout. Layers with a memory of their own (state-space, linear attention,
    convolutions) would carry the first text into the second, whatever mask they are given.
    """
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    ids = torch.tensor([[5, 4, 3, 2, 4, 3, 5]], device=device) % model.config.get_text_config().vocab_size
    segment = torch.tensor([[1, 1, 1, 2, 2, 2, 2]], device=device)
    trained = [part for part in model.modules() if part.training]
    model.eval()
    try:
        together = model(input_ids=ids, use_cache=False, **apart(model, segment, segment > 0))[0][0, 3:].float()
        alone = model(input_ids=ids[:, 3:], use_cache=False)[0][0].float()
    finally:
        for part in trained:
            part.training = True
    gap = (together - alone).abs().max() / alone.abs().max().clamp(min=1e-6)
    require(
        gap <= PROBE_TOLERANCE.get(dtype, 0.02),
        f"{type(model).__name__} lets a text see the one before it in its row (a trial was off by {float(gap):.1%}); "
        f"{ALONE}",
    )
