"""Lower bounds on the mutual information of two representations, from a critic's scores (Poole et al., 1905.06922).

``scores`` K x K: row i is student item i, column j teacher item j, the diagonal holds the pairs that belong together.
``log_baseline`` K is what a learned baseline says of row i, in log space. Every function returns K values, one per row,
whose mean is the bound, in nats. float64 stays float64, anything narrower is computed in float32.

An exponential that a bad critic drives beyond ``STEEP`` goes on as a straight line, so that value and gradient stay
finite; below that the values are exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.core.check import require
from limbeck.losses.divergence import upcast

STEEP = 30.0


def mi_alpha(scores: Tensor, log_baseline: Tensor, alpha: float) -> Tensor:
    """The interpolated bound: 1 + mean_j (s_ii - m_ij) - mean_j exp(s_ij - m_ii), both over j != i.

    m_ij = log(alpha exp(n_ij) + (1 - alpha) exp(b_i)) with n from ``leave_one_out``. alpha = 1 is InfoNCE with the pair
    left out of its own normaliser: low variance, at most about log K. alpha = 0 is the bound of the baseline alone
    (``tuba``): no ceiling, high variance.
    """
    scores, base = _checked(scores, log_baseline)
    require(0 <= alpha <= 1, f"mi_alpha: alpha has to lie between 0 and 1, but is {alpha}")
    share, rest = (math.log(x) if x > 0 else -math.inf for x in (alpha, 1 - alpha))
    mixed = torch.logaddexp(leave_one_out(scores) + share, (base + rest)[:, None])
    joint = _off_diagonal_mean(scores.diagonal()[:, None] - mixed)
    return 1 + joint - _off_diagonal_mean(_exp(scores - mixed.diagonal()[:, None]))


def tuba(scores: Tensor, log_baseline: Tensor) -> Tensor:
    """The bound of a learned baseline (Barber and Agakov, unnormalised): ``mi_alpha`` at alpha = 0."""
    scores, base = _checked(scores, log_baseline)
    return 1 + scores.diagonal() - base - _off_diagonal_mean(_exp(scores - base[:, None]))


def nwj(scores: Tensor) -> Tensor:
    """The bound of Nguyen, Wainwright and Jordan: ``tuba`` with a baseline of e."""
    return tuba(scores, torch.ones_like(scores[:, 0]))


def infonce(scores: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, 1807.03748), the pair among its own negatives: at most log K."""
    scores, _ = _checked(scores, scores[:, 0])
    return math.log(len(scores)) + scores.diagonal() - scores.logsumexp(1)


def leave_one_out(scores: Tensor) -> Tensor:
    """n_ij = log of the mean over k != j of exp(s_ik), K x K.

    Summed from both sides of j: subtracting one exponential from the sum of all loses everything where it dominates.
    """
    scores, _ = _checked(scores, scores[:, 0])
    edge = scores.new_full((len(scores), 1), -math.inf)
    before = torch.cat([edge, scores.logcumsumexp(1)[:, :-1]], 1)
    after = torch.cat([scores.flip(1).logcumsumexp(1).flip(1)[:, 1:], edge], 1)
    return torch.logaddexp(before, after) - math.log(len(scores) - 1)


def _exp(x: Tensor) -> Tensor:
    return x.clamp(max=STEEP).exp() * (1 + (x - STEEP).clamp(min=0))


def _off_diagonal_mean(values: Tensor) -> Tensor:
    """The mean of each row without its diagonal entry."""
    own = torch.eye(len(values), dtype=torch.bool, device=values.device)
    return values.masked_fill(own, 0).sum(1) / (len(values) - 1)


def _checked(scores: Tensor, log_baseline: Tensor) -> tuple[Tensor, Tensor]:
    square = scores.dim() == 2 and scores.shape[0] == scores.shape[1]
    require(square, f"a critic's scores have to be K x K, but are {tuple(scores.shape)}")
    require(len(scores) > 1, "a bound on information needs at least 2 items to contrast; raise the batch")
    require(
        log_baseline.shape == scores.shape[:1],
        f"the baseline has to be one value per row, {len(scores)}, but is {tuple(log_baseline.shape)}",
    )
    return upcast(scores), upcast(log_baseline)
