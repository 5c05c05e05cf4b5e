"""A teacher with known logits, its tokenizer, and rows of text for it: all made in a moment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from limbeck.core.batch import Batch, next_token_batch
from limbeck.core.signals import Signals
from limbeck.data.stream import Batches, lengths_mask, pad

SIZE = 300


def tokenizer(size: int = SIZE) -> Any:
    """One token for each of the words w0, w1, ..."""
    words = {"[UNK]": 0, "[END]": 1} | {f"w{i}": i for i in range(2, size)}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="[END]")


class ToyTeacher:
    """Logits that depend on a token and the one before it in its own text, and hidden states of two layers."""

    def __init__(self, size: int = SIZE, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        common = -1.5 * torch.log(torch.arange(1, size + 1).float())[torch.randperm(size, generator=draw)]
        self.now = common + torch.randn(size, 6, generator=draw) @ torch.randn(6, size, generator=draw)
        self.before = torch.randn(size, size, generator=draw)
        self.asked = 0

    def __call__(self, batch: Batch) -> Signals:
        self.asked += 1
        ids = batch["ids"]
        before = torch.cat([ids[:, :1], ids[:, :-1]], 1)
        if "segment" in batch:
            first = torch.ones_like(ids, dtype=torch.bool)
            first[:, 1:] = batch["segment"][:, 1:] != batch["segment"][:, :-1]
            before = torch.where(first, ids, before)
        logits = self.now[ids] + self.before[before]
        return Signals(logits=logits, hidden={1: logits[..., :8] * 1e5, 2: logits[..., 8:16]})


def rows(count: int = 40, seed: int = 0) -> list[tuple[list[int], int]]:
    """Token ids of texts, and where their supervised part begins."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(3, 24, count)
    return [(draw.integers(2, SIZE, n).tolist(), int(draw.integers(1, n))) for n in sizes]


def collate(texts: list[tuple[list[int], int]]) -> Batch:
    ids = [text for text, _ in texts]
    mask = lengths_mask(ids)
    keep = mask & ~lengths_mask([text[:begin] for text, begin in texts], mask.shape[1])
    return next_token_batch(pad(ids), mask, keep)


def packed(texts: list[tuple[list[int], int]]) -> Batch:
    """All texts in one row."""
    parts = [collate([text]) for text in texts]
    batch = {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}
    numbers = torch.cat([torch.full_like(part["ids"], n + 1) for n, part in enumerate(parts)], 1)
    return batch | {"segment": numbers}


def stream(count: int = 40, batch: int = 8, seed: int = 0, shuffle: bool = False) -> Batches:
    return Batches(rows(count, seed), collate, batch, seed, shuffle)
