"""Tasks of the atlas as running text: example after example, as the shipped language model has learned to go on."""

from __future__ import annotations

from random import Random

from limbeck.atlas.kinds import KINDS
from limbeck.atlas.tasks import is_held_out, specs
from limbeck.core.check import one_of


def worked(kind: str, n: int = 100, seed: int = 0, examples: int = 12) -> list[str]:
    """``n`` texts, each up to ``examples`` examples of one task of ``kind`` (``kinds.KINDS``), input before output.

    The tasks are those that the shipped model was trained on; text i depends on kind, seed and i alone.
    """
    one_of(kind, KINDS, "kind")
    known = [spec for spec in specs() if spec.kind == kind and not is_held_out(spec)]
    found = []
    for number in range(n):
        rng = Random(f"worked {kind} {seed} {number}")
        pairs = rng.choice(known).pairs(rng, examples)
        found.append("\n\n\n".join(f"{x}\n{y}" for _, x, y in pairs))
    return found
