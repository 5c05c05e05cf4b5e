"""Kernel ridge regression that is fitted again and again to a mixture of the truth and its own last fit.

Borup and Andersen, NeurIPS 2021, arXiv 2102.13088. Step t minimises

    alpha / 2 |f(X) - y|^2 + (1 - alpha) / 2 |f(X) - yhat_{t-1}|^2 + ridge / 2 |f|_H^2,    yhat_0 = y,

which is ridge regression on the target ``alpha y + (1 - alpha) yhat_{t-1}``. In the eigenbasis of the kernel,
K = V diag(d) V^T, every step only rescales the coordinates V^T y, so one decomposition gives all steps:

    shrinkage_t = a (alpha + (1 - alpha) shrinkage_{t-1}),    a = d / (d + ridge),    shrinkage_0 = 1.

With a constant alpha above 0 the steps converge, at a linear rate, to ridge regression with ``ridge / alpha``; with
alpha = 0 everything fades away. All numbers are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.core.check import require

AT_ONCE = 2**23  # numbers in memory at a time while distances are computed
SAME = 1e-24  # squared distance, relative to the predictions', below which two predictions are one


class Greedy(NamedTuple):
    """The best weight of the truth at each step, the loss it gives, and whether any weight would have given the same.

    A step is ``flat`` where the fit to the truth and the fit to the last step predict alike, as at the first step; its
    weight is then 1.
    """

    alphas: list[float]
    losses: list[float]
    flat: list[bool]


class KernelRidge:
    """Fits to ``targets`` n or n c with the kernel matrix ``kernel`` n n of the same points and a ``ridge`` above 0.

    ``alphas`` are the weights of the truth at steps 1, 2, ...; the first step fits the truth whatever its weight is.
    ``cross`` m n is the kernel of other points with these. Raises ``LimbeckError`` for a kernel that is not symmetric
    or has negative eigenvalues, values that are not finite, and weights outside [0, 1] unless ``free``.
    """

    def __init__(self, kernel: Tensor, targets: Tensor, ridge: float) -> None:
        kernel, targets = kernel.double(), targets.double()
        require(0 < ridge < float("inf"), f"kernel ridge: expected a ridge above 0, but got {ridge}")
        require(
            kernel.dim() == 2 and kernel.shape[0] == kernel.shape[1] == len(targets),
            f"kernel ridge: the kernel is {tuple(kernel.shape)}, but there are {len(targets)} targets; they need as "
            "many rows and columns as there are targets",
        )
        require(
            bool(torch.isfinite(kernel).all() and torch.isfinite(targets).all()),
            "kernel ridge: kernel and targets have to be finite; check the data for empty cells",
        )
        require(torch.allclose(kernel, kernel.T), "kernel ridge: the kernel is not symmetric; give k(X, X)")
        self.ridge, self.flat = ridge, targets.dim() == 1
        self.spectrum, self.basis = torch.linalg.eigh(kernel)  # rising
        least, most = float(self.spectrum[0]), float(self.spectrum[-1])
        require(
            least >= -1e-8 * max(most, 1.0),
            f"kernel ridge: the kernel has the eigenvalue {least:.3g}, so it is none; give one that is positive "
            "semi-definite, such as rbf",
        )
        self.spectrum = self.spectrum.clamp(min=0)
        self.targets = targets[:, None] if self.flat else targets
        self.coordinates = self.basis.T @ self.targets

    @property
    def plain(self) -> Tensor:
        """What one fit keeps of each coordinate, d / (d + ridge): n."""
        return self.spectrum / (self.spectrum + self.ridge)

    def shrinkage(self, alphas: Sequence[float], free: bool = False) -> Tensor:
        """What is left of each coordinate after each step: steps n, in the order of ``spectrum``."""
        return self.plain * self._aims(alphas, free)

    def limit(self, alpha: float) -> Tensor:
        """What is left of each coordinate after endless steps of weight ``alpha``: d / (d + ridge / alpha), n."""
        _check([alpha], free=False)
        return self.spectrum * alpha / (self.spectrum * alpha + self.ridge)

    def fitted(self, alphas: Sequence[float], free: bool = False) -> Tensor:
        """Predictions for the points themselves after each step: steps n or steps n c."""
        return self._shaped(self.basis @ (self.shrinkage(alphas, free)[..., None] * self.coordinates))

    def coefficients(self, alphas: Sequence[float], free: bool = False) -> Tensor:
        """What ``cross`` is multiplied by to predict, after each step: steps n or steps n c."""
        return self._shaped(self._coefficients(self._aims(alphas, free)))

    def predict(self, cross: Tensor, alphas: Sequence[float], free: bool = False) -> Tensor:
        """Predictions for other points after each step: steps m or steps m c."""
        return self._shaped(cross.double() @ self._coefficients(self._aims(alphas, free)))

    def predict_limit(self, cross: Tensor, alpha: float) -> Tensor:
        """Predictions for other points after endless steps of weight ``alpha``: m or m c."""
        return self._shaped(cross.double() @ self._coefficients(alpha + (1 - alpha) * self.limit(alpha)))

    def best(self, cross: Tensor, truth: Tensor, steps: int, clip: bool = True) -> Greedy:
        """The weight of each step that gives the least squared error on held-out ``truth`` m or m c, step by step.

        A prediction is alpha * g1 + (1 - alpha) * g0, with g1 fitted to the truth and g0 to the last step, so

            alpha = <truth - g0, g1 - g0> / |g1 - g0|^2,

        which ``clip`` keeps in [0, 1]. Greedy: each step takes the ones before it as they are.
        """
        require(steps >= 1, f"kernel ridge: expected at least one step, but got {steps}")
        truth = truth.double().reshape(len(truth), -1)
        found = Greedy([], [], [])
        left = torch.ones_like(self.spectrum)
        truthful = cross.double() @ self._coefficients(left)
        for _ in range(steps):
            alpha, flat = mixing_weight(truthful, cross.double() @ self._coefficients(left), truth)
            alpha = min(max(alpha, 0.0), 1.0) if clip else alpha
            aim = alpha + (1 - alpha) * left
            error = cross.double() @ self._coefficients(aim) - truth
            found.alphas.append(alpha)
            found.losses.append(float(error.square().mean()))
            found.flat.append(flat)
            left = self.plain * aim
        return found

    def _aims(self, alphas: Sequence[float], free: bool) -> Tensor:
        """The targets of each step as shares of each coordinate: steps n."""
        _check(alphas, free)
        aims, left = [], torch.ones_like(self.spectrum)
        for alpha in alphas:
            aims.append(alpha + (1 - alpha) * left)
            left = self.plain * aims[-1]
        return torch.stack(aims)

    def _coefficients(self, aims: Tensor) -> Tensor:
        """(K + ridge)^-1 of targets given as shares ``aims`` ... n of the coordinates: ... n c."""
        return self.basis @ ((aims / (self.spectrum + self.ridge))[..., None] * self.coordinates)

    def _shaped(self, values: Tensor) -> Tensor:
        return values[..., 0] if self.flat else values


def mixing_weight(truthful: Tensor, imitating: Tensor, truth: Tensor) -> tuple[float, bool]:
    """The alpha for which alpha * ``truthful`` + (1 - alpha) * ``imitating`` is nearest to ``truth``, all of one shape.

    Second: whether the two are the same, so that any alpha would do; alpha is 1 then.
    """
    truthful, imitating, truth = truthful.double(), imitating.double(), truth.double()
    apart = truthful - imitating
    if float(apart.square().sum()) <= SAME * float(truthful.square().sum()):
        return 1.0, True
    return float(((truth - imitating) * apart).sum() / apart.square().sum()), False


def rbf(points: Tensor, others: Tensor, gamma: float) -> Tensor:
    """exp(-gamma |x - y|^2): ``points`` m f, ``others`` n f -> m n, float64."""
    require(0 < gamma < float("inf"), f"rbf: expected a gamma above 0, but got {gamma}")
    points, others = points.double(), others.double()
    rows = max(1, AT_ONCE // max(1, others.numel()))
    # not cdist, whose fast form loses digits nearby
    apart = [(part[:, None] - others[None]).square().sum(-1) for part in points.split(rows)]
    return torch.exp(-gamma * torch.cat(apart))


def _check(alphas: Sequence[float], free: bool) -> None:
    require(alphas, "kernel ridge: expected the weight of the truth for at least one step")
    for alpha in alphas:
        require(
            abs(alpha) < float("inf") if free else 0 <= alpha <= 1,
            f"kernel ridge: expected a weight of the truth from 0 to 1, but got {alpha}",
        )
