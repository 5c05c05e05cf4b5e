"""Objectives on images whose patches were hidden."""

from __future__ import annotations

from limbeck.core.batch import Batch
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective
from limbeck.core.terms import Clock, Terms, per
from limbeck.losses.reconstruction import patch_mse
from limbeck.objectives.named import named, unit


def reconstruction(size: int, normalised: bool = True, on: str = "masked") -> Objective:
    """Squared error of ``extra["patches"]`` b n p at the hidden patches ``batch[on]`` b n. Term: ``reconstruction``.

    The truth is cut out of ``batch["pixels"]`` b c h w; arguments as in ``losses.reconstruction.patch_mse``.
    """

    @named("reconstruction", size, normalised=normalised, on=on)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        errors = patch_mse(student.need("extra")["patches"], batch["pixels"], size, normalised)
        return per(on, errors[unit(batch, on)], "reconstruction")

    return objective
