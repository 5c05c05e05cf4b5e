"""Policy gradients on written text: what a token earns later, and the clipped surrogate (MiniLLM, 2306.08543).

All tensors are b t, one value per written token; ``mask`` b t is true at real ones. fp32 inside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.core.check import require


def returns_to_go(
    rewards: Tensor, mask: Tensor, gamma: float = 1.0, mean: bool = True, later_only: bool = False
) -> Tensor:
    """What follows from each token: sum over t' >= t of gamma**(t' - t) r_t', 0 outside the mask.

    ``mean`` divides by the number of real tokens from t on, so that long texts do not weigh more. ``later_only`` leaves
    the token's own reward out of sum and count (the paper's R_{t+1}, whose single step is treated exactly elsewhere).
    """
    require(rewards.shape == mask.shape, f"rewards {tuple(rewards.shape)} and mask {tuple(mask.shape)} must agree")
    real, earned = mask.float(), rewards.float() * mask
    sums, counts = torch.zeros_like(earned), torch.zeros_like(earned)
    total, count = torch.zeros_like(earned[:, 0]), torch.zeros_like(earned[:, 0])
    for t in reversed(range(earned.shape[1])):
        if later_only:
            sums[:, t], counts[:, t] = gamma * total, count
        total, count = gamma * total + earned[:, t], count + real[:, t]
        if not later_only:
            sums[:, t], counts[:, t] = total, count
    return (sums / counts.clamp(min=1) if mean else sums) * real


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` shifted and scaled to mean 0 and variance 1 over the real tokens; 0 elsewhere.

    Fewer than two real tokens, which have no variance, give 0. The released code counts padding too; see the card.
    """
    real = values.float()[mask]
    if real.numel() < 2:
        return torch.zeros_like(values, dtype=torch.float32)
    return torch.where(mask, (values.float() - real.mean()) * (real.var() + 1e-8).rsqrt(), 0.0)


def clipped_surrogate(
    logprobs: Tensor, old: Tensor, advantage: Tensor, weight: Tensor | None = None, clip: float = 0.2
) -> Tensor:
    """PPO's loss per token, max(-A rho, -A clamp(rho, 1 - clip, 1 + clip)); any shape, the same for all.

    rho = exp(logprobs - old) * weight: how much likelier the token is now than where it was drawn. ``weight`` corrects
    for text that was not drawn from the old policy alone. Gradients flow through ``logprobs``.
    """
    require(clip > 0, f"the clipping range must be above 0, but is {clip}")
    ratio = (logprobs.float() - old.float()).exp()
    ratio = ratio if weight is None else ratio * weight
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
