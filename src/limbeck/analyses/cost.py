"""What a model costs to keep and to run, as it stands."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from limbeck.core.batch import Batch
from limbeck.core.signals import Source

REPEATS = 3


def parameters(model: Any) -> int:
    """Parameters, each shared one once."""
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


def megabytes(model: Any) -> float:
    """Bytes of its parameters in the precision in which they are held, in millions; shared ones once."""
    return sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values()) / 1e6


@torch.no_grad()
def tokens_per_second(source: Source, batches: Sequence[Batch], repeats: int = REPEATS) -> float:
    """Real tokens read per second, in the fastest of ``repeats`` passes over ``batches`` after one that warms up.

    One forward pass without logits, as a prompt is read; writing costs the same matrices once per token.
    """
    real = sum(int(batch["mask"].sum()) for batch in batches)
    device = batches[0]["ids"].device
    seconds = [_pass(source, batches, device) for _ in range(repeats + 1)]
    return real / min(seconds[1:])


def _pass(source: Source, batches: Sequence[Batch], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    began = time.perf_counter()
    for batch in batches:
        source(batch)
    wait(device)
    return time.perf_counter() - began
