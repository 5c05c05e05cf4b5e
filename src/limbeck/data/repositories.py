"""Rows of several texts that come from one place, or from several: an objective beside masked words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.data.read import field, files, read_jsonl
from limbeck.data.stream import Batches, lengths_mask, masked, pad

Places = Mapping[str, Sequence[str]]
"""Texts by the place they come from."""


def read_places(path: str | Path) -> dict[str, list[str]]:
    """The texts of a ``.jsonl`` file (or of a folder of them) by their field ``repository``; texts are in ``text``."""
    places: dict[str, list[str]] = {}
    for file in files(path, (".jsonl",)):
        for number, row in read_jsonl(file):
            where = f"{file}:{number}"
            places.setdefault(field(row, "repository", str, where), []).append(field(row, "text", str, where))
    return places


def place_batches(
    places: Places, tokenizer: Any, length: int, batch: int, rows: int, texts: int = 4, seed: int = 0
) -> Batches:
    """Masked-word batches (``data.stream.masked``) of ``rows`` rows of ``texts`` texts, and ``same`` b bool.

    With probability 1/2 all texts of a row come from one place, else each from another one (2503.03008). No text comes
    twice in a row. Texts are parted by the separator and cut to equal shares of ``length`` tokens.
    """
    known = {name: sorted(set(said)) for name, said in places.items()}
    large = [name for name, said in known.items() if len(said) >= texts]
    require(texts >= 2, f"--texts {texts}: a row needs at least 2 texts, to belong together or not")
    require(
        len(known) >= texts and large,
        f"rows of {texts} texts need {texts} places, one of them with {texts} texts; there are {len(known)} places",
    )
    codes = {name: _codes(said, tokenizer, (length - 2) // texts - 1) for name, said in known.items()}
    made = [_row(codes, large, texts, tokenizer, np.random.default_rng([seed, 13, i])) for i in range(rows)]

    def collate(rows: list[Any], rng: np.random.Generator) -> Batch:
        ids = [ids for ids, _ in rows]
        same = torch.tensor([same for _, same in rows])
        words = masked(pad(ids, tokenizer.pad_token_id or 0), lengths_mask(ids), tokenizer, 0.15, rng)
        return {**words, "same": same}

    return Batches(made, collate, batch, seed, draws=True)


def _codes(texts: Sequence[str], tokenizer: Any, room: int) -> list[list[int]]:
    require(room >= 1, "rows are too short for that many texts; raise --length or lower --texts")
    return [ids[:room] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def _row(
    codes: Mapping[str, list[list[int]]], large: list[str], texts: int, tokenizer: Any, rng: np.random.Generator
) -> tuple[list[int], bool]:
    """Ids of one row, and whether its texts come from one place."""
    same = bool(rng.random() < 0.5)
    if same:
        place = codes[large[rng.integers(len(large))]]
        chosen = [place[i] for i in rng.choice(len(place), texts, replace=False)]
    else:
        names = sorted(codes)
        places = [codes[names[i]] for i in rng.choice(len(names), texts, replace=False)]
        chosen = [place[rng.integers(len(place))] for place in places]
    ids = [tokenizer.cls_token_id]
    for text in chosen:
        ids += [*text, tokenizer.sep_token_id]
    return ids, same
