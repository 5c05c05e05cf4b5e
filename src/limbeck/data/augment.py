"""More text out of text, for a teacher to say what it is: words swapped, words replaced, there and back again.

A policy maps texts to as many texts; it draws from the generator that it is given, so that the same seed gives the
same texts. Policies run one after the other (He et al. 2021, 2109.11105, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from limbeck.core.check import require
from limbeck.data.labelled import Row

Policy = Callable[[list[str], np.random.Generator], list[str]]


def swap(rate: float) -> Policy:
    """Exchanges two words of a text, ``rate`` times the number of its words (EDA, 1901.11196)."""

    def swapped(text: str, rng: np.random.Generator) -> str:
        words = text.split()
        for _ in range(_count(rate, len(words))):
            i, j = rng.choice(len(words), 2, replace=False)
            words[i], words[j] = words[j], words[i]
        return " ".join(words)

    return lambda texts, rng: [swapped(text, rng) if len(text.split()) > 1 else text for text in texts]


def substitute(rate: float, model: Any, tokenizer: Any, top_p: float = 0.8, length: int = 128) -> Policy:
    """Replaces a share ``rate`` of the words by what a masked language model writes, drawn from its top ``top_p``.

    A word becomes one token; texts are cut at ``length`` tokens.
    """
    require(
        tokenizer.mask_token_id is not None, "words are replaced by a masked language model; its tokenizer has none"
    )

    def policy(texts: list[str], rng: np.random.Generator) -> list[str]:
        return [text for i in range(0, len(texts), 64) for text in replaced(texts[i : i + 64], rng)]

    def replaced(texts: list[str], rng: np.random.Generator) -> list[str]:
        words = [text.split() or [""] for text in texts]
        places = [set(rng.choice(len(w), _count(rate, len(w)), replace=False).tolist()) for w in words]
        shown = [
            " ".join(tokenizer.mask_token if i in chosen else word for i, word in enumerate(row))
            for row, chosen in zip(words, places, strict=True)
        ]
        answers = answers_at_masks(model, tokenizer, shown, top_p, length, rng)
        return [_filled(row, sorted(p), said) for row, p, said in zip(words, places, answers, strict=True)]

    return policy


def there_and_back(there: Callable[[list[str]], list[str]], back: Callable[[list[str]], list[str]]) -> Policy:
    """Translates into another language and back; a text of which nothing is left stays as it was."""
    return lambda texts, rng: [new.strip() or old for old, new in zip(texts, back(there(texts)), strict=True)]


def written_by(model: Any, tokenizer: Any, length: int, batch: int = 32) -> Callable[[list[str]], list[str]]:
    """What an encoder-decoder writes for each text, word by word the likeliest, at most ``length`` tokens."""

    @torch.no_grad()
    def write(texts: list[str]) -> list[str]:
        found: list[str] = []
        for i in range(0, len(texts), batch):
            coded = tokenizer(
                texts[i : i + batch], padding=True, truncation=True, max_length=length, return_tensors="pt"
            )
            inputs = {name: coded[name].to(model.device) for name in ("input_ids", "attention_mask")}
            ids = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=length)
            found += tokenizer.batch_decode(ids, skip_special_tokens=True)
        return found

    return write


@torch.no_grad()
def answers_at_masks(
    model: Any, tokenizer: Any, texts: list[str], top_p: float, length: int, rng: np.random.Generator
) -> list[list[str]]:
    """What ``model`` writes at the mask tokens of each text, drawn from the fewest words that hold ``top_p``."""
    coded = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    device = next(model.parameters()).device
    logits = model(coded["input_ids"].to(device), attention_mask=coded["attention_mask"].to(device)).logits
    answers: list[list[str]] = [[] for _ in texts]
    special = torch.tensor(tokenizer.all_special_ids)
    for row, place in (coded["input_ids"] == tokenizer.mask_token_id).nonzero().tolist():
        said = logits[row, place].float().cpu().index_fill(0, special, -torch.inf).softmax(-1).double()
        best, ids = said.sort(descending=True)
        kept = int((best.cumsum(0) < top_p).sum()) + 1
        chances = (best[:kept] / best[:kept].sum()).numpy()
        answers[row].append(tokenizer.decode([int(ids[rng.choice(kept, p=chances)])]).strip())
    return answers


def augmented(rows: Sequence[Row], policies: Sequence[Policy], copies: int, seed: int = 0) -> list[Row]:
    """``copies`` new rows for each of ``rows``, without a class: whoever teaches says what they are.

    A copy that no policy has changed is left out.
    """
    found: list[Row] = []
    for copy in range(copies if policies else 0):
        rng = np.random.default_rng([seed, 11, copy])
        texts = _through(policies, [row.text for row in rows], rng)
        pairs = _through(policies, [row.pair or "" for row in rows], rng)
        made = [Row(t, p if row.pair is not None else None) for row, t, p in zip(rows, texts, pairs, strict=True)]
        found += [new for new, row in zip(made, rows, strict=True) if (new.text, new.pair) != (row.text, row.pair)]
    return found


def _through(policies: Sequence[Policy], texts: list[str], rng: np.random.Generator) -> list[str]:
    filled = [i for i, text in enumerate(texts) if text.strip()]
    new, out = [texts[i] for i in filled], list(texts)
    for policy in policies:
        new = policy(new, rng)
    for place, text in zip(filled, new, strict=True):
        out[place] = text
    return out


def _count(rate: float, words: int) -> int:
    return min(words, max(1, round(rate * words)))


def _filled(words: list[str], places: list[int], answers: list[str]) -> str:
    """``words`` with the answers at ``places``; a place beyond the cut keeps its word."""
    said = dict(zip(places, answers, strict=False))
    return " ".join(said.get(i) or word for i, word in enumerate(words))
