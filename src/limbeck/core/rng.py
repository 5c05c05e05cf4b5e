"""The random state of a process: seeded, kept and given back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch; only torch hears ``rank``: dropout differs by process, choices of data do not."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed + 1_000_003 * rank)


def random_state() -> dict[str, Any]:
    """The state of the generators of Python, NumPy, torch and (if there is one) the current CUDA device."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Give back what ``random_state`` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the random state as it was found, so that a stage that is skipped changes nothing for what follows it."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
