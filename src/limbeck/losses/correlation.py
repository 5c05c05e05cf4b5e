"""How the distributions of neighbouring tokens go together."""

from __future__ import annotations

from torch import Tensor

from limbeck.core.check import require
from limbeck.losses.divergence import log_probs


def pair_correlation(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Squared distance of c = P_k * P_(k+1) between teacher and student, one value per pair of tokens.

    Each side gives the logits n v of the first and of the second token of n pairs; c is the elementwise product of the
    two distributions (Liu et al. 2024, arXiv 2407.10068). Summed, not averaged, over v: the entries are far below 1, so
    everything is float32 or wider. Returns n.
    """
    shapes = {tuple(part.shape) for part in (*student, *teacher)}
    require(len(shapes) == 1, f"pair_correlation: all four logits must have one shape, but have {sorted(shapes)}")
    ours, theirs = ((log_probs(first) + log_probs(second)).exp() for first, second in (student, teacher))
    return (ours - theirs).pow(2).sum(-1)
