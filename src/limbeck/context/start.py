"""The tokens that an LLM expects before all others, such as Llama's ``<s>``: which they are, and vectors behind them.

They open whatever the LLM reads, ``[start][demonstrations][query]``, ``[start][vectors][query]`` or ``[start][query]``,
as they did when it was trained: a model that has learned to rest its attention on them misses them elsewhere (arXiv
2309.17453).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.evaluation.model import embedded


def start_of(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that ``tokenizer`` by itself puts before a text: Llama's ``<s>``, for GPT-2 none.

    What it puts behind one (T5's end of text) is no start.
    """
    plain, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    places = range(len(whole) - len(plain) + 1)
    ahead = next((place for place in places if whole[place : place + len(plain)] == plain), 0)
    return tuple(whole[:ahead])


def embeddings(lm: Any, start: Sequence[int]) -> Tensor | None:
    """The embeddings s d of ``start`` in ``lm``, in float32; None if it is empty."""
    return embedded(lm, torch.tensor(start))[0].float() if start else None


def behind(start: Tensor | None, vectors: Tensor) -> Tensor:
    """``vectors`` b l d behind the embeddings ``start`` s d, the same in every row: b s+l d."""
    return vectors if start is None else torch.cat([start.expand(len(vectors), -1, -1), vectors], 1)
