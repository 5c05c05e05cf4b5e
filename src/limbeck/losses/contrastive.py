"""Pairs of vectors that belong together, against all the other pairs of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from limbeck.core.check import require
from limbeck.losses.divergence import upcast


def pair_contrast(query: Tensor, match: Tensor, scale: float | Tensor = 20.0) -> Tensor:
    """One value per pair b: half the cross-entropy of finding the match for the query and the query for the match.

    ``query`` and ``match`` b d are brought to length 1, their cosines multiplied by ``scale`` (1 / temperature; CLIP,
    Radford et al. 2021, 2103.00020). Refuses a batch of one pair, which has nothing to be told from, and zero vectors.
    """
    require(query.shape == match.shape, f"pairs differ in shape: {tuple(query.shape)} and {tuple(match.shape)}")
    require(len(query) > 1, "a pair is told from the other pairs of its batch; give at least 2")
    ours, theirs = (_unit(upcast(side)) for side in (query, match))
    logits = scale * ours @ theirs.T
    own = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, own, reduction="none") + cross_entropy(logits.T, own, reduction="none")) / 2


def _unit(vectors: Tensor) -> Tensor:
    length = vectors.norm(dim=-1, keepdim=True)
    require(bool((length > 0).all()), "a vector of zeros has no direction to compare; check what was pooled")
    return vectors / length
