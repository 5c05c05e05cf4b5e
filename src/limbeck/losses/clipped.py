"""KL on the dense part of the teacher's distribution: classes between two levels of its probabilities (DAC-KL)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from limbeck.core.check import require
from limbeck.losses.divergence import kl_of_logs, log_pair

EDGE = 40.0  # sigmoid(40) is 1 in every float: as far, in units of softness, do levels 0 and 1 lie outside all classes


def clipped_kl(
    student: Tensor,
    teacher: Tensor,
    low: Tensor,
    high: Tensor,
    always: Tensor | None = None,
    least: float = 0.0,
    most: int = 1024,
    softness: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """KL(P || Q) of both distributions renormalised on the classes between two quantiles of P, and P's mass there.

    ``student`` and ``teacher`` n v are logits; ``low`` <= ``high`` n, from 0 to 1, are quantile levels of the ``most``
    largest values of P; 0 and 1 cut nothing of these. Classes are kept softly, with weights
    sigmoid((log p - t_low) / softness) * sigmoid((t_high - log p) / softness), so that gradients reach the levels.
    ``always`` n names a class per item that is kept whole. ``least`` is a share of P's mass that is kept whatever the
    levels say: nothing else stops a learned level from making the loss small by keeping little. Returns n and n.

    After Liu et al. 2024, arXiv 2407.10068, which leaves the soft form open. With levels 0 and 1, and ``most`` not
    below v, it is forward KL.
    """
    require(softness > 0, f"clipped_kl: expected a softness above 0, but got {softness}")
    require(0 <= least < 1, f"clipped_kl: expected a least share of mass from 0 to below 1, but got {least}")
    require(most >= 2, f"clipped_kl: a distribution needs at least two classes, but most is {most}")
    q, p = log_pair(student, teacher, 1.0)
    top = p.detach().topk(min(most, p.shape[-1]), dim=-1).values  # n k, falling
    bottom, ceiling = thresholds(top, low, high, EDGE * softness)
    if least:
        needed = guard(top, least)
        slack = EDGE * softness / 4
        bottom, ceiling = torch.minimum(bottom, needed[0] - slack), torch.maximum(ceiling, needed[1] + slack)
    weight = logsigmoid((p - bottom[:, None]) / softness) + logsigmoid((ceiling[:, None] - p) / softness)
    if always is not None:
        weight = weight.scatter(-1, always[:, None], 0.0)
    kept_p, kept_q = (p + weight).log_softmax(-1), (q + weight).log_softmax(-1)
    return kl_of_logs(kept_p, kept_q), (p + weight).exp().sum(-1)


def thresholds(top: Tensor, low: Tensor, high: Tensor, edge: float) -> tuple[Tensor, Tensor]:
    """log-probabilities n at the levels ``low`` and ``high`` of the falling values ``top`` n k, linear in between.

    Level 0 lies ``edge`` below the smallest value, level 1 ``edge`` above the largest.
    """
    rising = top.flip(-1)
    ladder = torch.cat([rising[:, :1] - edge, rising, rising[:, -1:] + edge], -1)  # n k+2
    return _at(ladder, low), _at(ladder, high)


def _at(ladder: Tensor, level: Tensor) -> Tensor:
    place = level.clamp(0, 1) * (ladder.shape[-1] - 1)
    below = place.detach().floor().long().clamp(max=ladder.shape[-1] - 2)[:, None]
    here, there = ladder.gather(-1, below)[:, 0], ladder.gather(-1, below + 1)[:, 0]
    return here + (place - below[:, 0]) * (there - here)


def guard(top: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Bounds n of log p between which at least ``least`` of the mass of ``top`` n k lies: (the lower, the upper).

    At most half of what may go is cut off at the top, the rest at the bottom.
    """
    mass = top.exp()
    share = mass.cumsum(-1) / mass.sum(-1, keepdim=True)  # up to and with each class, from the largest down
    spare = (1 - least) / 2
    first = ((share - mass / mass.sum(-1, keepdim=True)) <= spare).sum(-1, keepdim=True) - 1
    last = (share < 1 - spare).sum(-1, keepdim=True).clamp(max=top.shape[-1] - 1)
    return top.gather(-1, last)[:, 0], top.gather(-1, first)[:, 0]
