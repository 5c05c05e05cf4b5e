"""How well texts find what belongs to them."""

from __future__ import annotations

from torch import Tensor

from limbeck.core.check import require


def ranks(scores: Tensor) -> Tensor:
    """The place, from 1, of each query's own match among all n: ``scores`` n n (query, match), own on the diagonal.

    A match that scores as high as the own one stands before it, so that vectors that are all alike find nothing.
    """
    require(
        scores.dim() == 2 and scores.shape[0] == scores.shape[1], f"scores are to be n n, not {tuple(scores.shape)}"
    )
    require(bool(scores.isfinite().all()), "scores hold NaN or infinity; check the vectors")
    return (scores >= scores.diagonal()[:, None]).sum(1)


def found(places: Tensor, among: tuple[int, ...] = (1, 10)) -> dict[str, float]:
    """``mrr``, the mean of 1 / place, and ``recall_<k>``, the share of queries whose match is among the first k."""
    require(len(places), "nothing was looked for; give at least one query")
    recall = {f"recall_{k}": float((places <= k).double().mean()) for k in among}
    return {"mrr": float((1 / places.double()).mean()), **recall}
