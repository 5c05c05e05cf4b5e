"""New rows out of a task's own: the settings, and the policies with the models that they need.

Not a method: the ``Config`` of a method that augments inherits ``Augmenting``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from limbeck.core.check import one_of, require
from limbeck.data.augment import Policy, augmented, substitute, swap, there_and_back, written_by
from limbeck.data.labelled import Row
from limbeck.methods.encoders.classification import ATLAS
from limbeck.models.load import load_model

POLICIES = ("substitute", "translate", "swap")


@dataclass(frozen=True, kw_only=True)
class Augmenting:
    """How new rows are made for a teacher to judge (2109.11105, section 3.1)."""

    augment: tuple[Literal["substitute", "translate", "swap"], ...] = ()
    """Policies, one after the other, that make new rows for the teacher to judge; paper: any of 15 orders."""
    augment_rate: float = 0.1
    """Share of the words that a policy changes; paper: 0.1, 0.3 or 0.5."""
    copies: int = 1
    """New rows per row of the data, where --augment is given; ours."""
    augmenter: str | None = None
    """Masked language model that substitutes words; by default the shipped one, for the atlas only."""
    translators: tuple[str, ...] = ()
    """Two encoder-decoders for translate, there and back; folders or Hub ids."""


def new_rows(rows: list[Row], cfg: Any) -> list[Row]:
    """What the policies of ``cfg`` make of ``rows``, without a class."""
    return augmented(rows, policies(cfg), cfg.copies, cfg.seed)


def policies(cfg: Any) -> list[Policy]:
    """The policies that ``cfg.augment`` names, in its order."""
    require(0 < cfg.augment_rate <= 1, f"--augment-rate {cfg.augment_rate}: expected a share above 0, up to 1")
    makers: Mapping[str, Callable[[], Policy]] = {
        "swap": lambda: swap(cfg.augment_rate),
        "substitute": lambda: _substitute(cfg),
        "translate": lambda: _translate(cfg),
    }
    return [makers[one_of(name, POLICIES, "--augment")]() for name in cfg.augment]


def _substitute(cfg: Any) -> Policy:
    known = cfg.augmenter is not None or cfg.data is None
    require(known, "--augment substitute needs --augmenter, a masked language model that knows your data's language")
    return substitute(cfg.augment_rate, *load_model(cfg.augmenter or ATLAS, "masked"))


def _translate(cfg: Any) -> Policy:
    require(
        len(cfg.translators) == 2,
        f"--augment translate needs two --translators, there and back, but got {len(cfg.translators)}",
    )
    there, back = (written_by(*load_model(name, "language"), cfg.length) for name in cfg.translators)
    return there_and_back(there, back)
