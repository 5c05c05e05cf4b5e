"""Several layers of the student against several of the teacher, by a fixed map or by a plan found in each batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.signals import Signals, chosen
from limbeck.core.terms import Clock, Term, Terms
from limbeck.losses.attention import attention_ce, attention_mse, scores_of
from limbeck.losses.feature import hidden_ce, hidden_cosine, hidden_mse, hidden_pkd
from limbeck.losses.information import mi_alpha
from limbeck.objectives.critics import mlp_critic, pair_name, projection
from limbeck.objectives.layer_maps import Pairs, transport
from limbeck.objectives.named import unit
from limbeck.objectives.relations import layer_of

Values = Callable[[nn.Module | None, Any, Any, Tensor], Tensor]
"""A pair's network, what both say of their layer, the mask b t of real tokens -> one value per item of the unit."""


@dataclass(frozen=True)
class Comparison:
    """How one student layer is compared with one teacher layer: by which ``signal``, averaged over which ``unit``."""

    signal: Literal["hidden", "qkv"]
    unit: str
    values: Values


def tokens(distance: Callable[[Tensor, Tensor], Tensor]) -> Comparison:
    """Hidden states of every real token, the student's projected to the teacher's width."""

    def values(link: nn.Module | None, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return distance(_through(link, chosen(student, mask)), chosen(teacher, mask))

    return Comparison("hidden", "mask", values)


def first_tokens(distance: Callable[[Tensor, Tensor], Tensor]) -> Comparison:
    """Hidden states of the first real token of each row ([CLS]), the student's projected."""

    def values(link: nn.Module | None, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return distance(_through(link, first(student, mask)), first(teacher, mask))

    return Comparison("hidden", "row", values)


def information(alpha: float) -> Comparison:
    """Minus the MI-alpha bound between the first tokens of the rows of a batch; the pair's network is a ``Critic``."""

    def values(link: nn.Module | None, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        require(link is not None, "information is measured by a critic; give one for each pair of layers")
        assert link is not None
        scores, base = link(first(student, mask), first(teacher, mask))
        return -mi_alpha(scores, base, alpha)

    return Comparison("hidden", "row", values)


def attention(kind: Literal["mse", "ce"]) -> Comparison:
    """Attention scores: squared differences averaged over a row's pairs of tokens, or where each query looks.

    Heads are compared one by one where both models have as many, else pooled.
    """

    def values(link: nn.Module | None, student: Any, teacher: Any, mask: Tensor) -> Tensor:
        ours, theirs = scores_of(*student[:2]), scores_of(*teacher[:2])
        heads: Literal["each", "pooled"] = "each" if ours.shape[1] == theirs.shape[1] else "pooled"
        number = mask.sum(1).clamp(min=1)
        if kind == "mse":
            return attention_mse(ours, theirs, mask, heads).sum((1, 2)) / number**2
        return attention_ce(ours, theirs, mask, heads).sum(1) / number

    return Comparison("qkv", "row", values)


def comparison(name: str, alpha: float = 0.9) -> Comparison:
    """The comparison of that name, one of ``COMPARISONS``."""
    return information(alpha) if name == "mi" else FIXED[name]


FIXED = {
    "mse": tokens(hidden_mse),
    "ce": tokens(hidden_ce),
    "cosine": tokens(hidden_cosine),
    "pkd": first_tokens(hidden_pkd),
    "attention_mse": attention("mse"),
    "attention_ce": attention("ce"),
}
COMPARISONS = ("mi", *FIXED)


@dataclass(frozen=True)
class Layers:
    """The objective: the sum over ``pairs`` of layers of what ``compare`` says of each.

    ``links`` holds a network per pair (``pair_name``) or one named ``shared``. With ``plan`` the pairs are weighed by
    the cheapest transport plan between all blocks of both, made anew in each batch; embeddings are matched apart.
    Term: ``intermediate``.
    """

    compare: Comparison
    pairs: Pairs
    links: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    plan: bool = False

    def __call__(self, student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        """Terms of one micro-batch."""
        mask = unit(batch, "mask")
        values = {pair: self._values(pair, student, teacher, mask) for pair in self.pairs}
        total = torch.stack([v.float().sum() for v in values.values()])
        shares = self._shares(values) if self.plan else torch.ones_like(total)
        return Terms(intermediate=Term((shares * total).sum(), self.compare.unit))

    def _values(self, pair: tuple[int, int], student: Signals, teacher: Signals, mask: Tensor) -> Tensor:
        ours, theirs = (
            layer_of(said, self.compare.signal, n) for said, n in zip((student, teacher), pair, strict=True)
        )
        name = next((name for name in (pair_name(pair), "shared") if name in self.links), None)
        return self.compare.values(self.links[name] if name else None, ours, theirs, mask)

    def _shares(self, values: Mapping[tuple[int, int], Tensor]) -> Tensor:
        """The weight of each pair: its entry in the plan, or 1 for the embeddings."""
        blocks = [pair for pair in values if pair[0] > 0]
        rows, columns = max(i for i, _ in blocks), max(j for _, j in blocks)
        cost = torch.stack([values[pair].mean() if len(values[pair]) else values[pair].sum() for pair in blocks])
        plan = dict(zip(blocks, transport(cost.view(rows, columns)).flatten(), strict=True))
        return torch.stack([plan.get(pair, cost.new_ones(())) for pair in values])


def links(kind: str, pairs: Pairs, student: int, teacher: int, shared: bool = True) -> nn.ModuleDict:
    """The untrained networks for the comparison ``kind`` of ``pairs`` of layers of these widths.

    For mi a critic, one for all pairs or, unless ``shared``, one for each; projections for distances of states.
    """
    if kind == "mi" and shared:
        return nn.ModuleDict({"shared": mlp_critic(student, teacher)})
    make: Callable[[int, int], nn.Module] = mlp_critic if kind == "mi" else projection
    wanted = [] if comparison(kind).signal == "qkv" else pairs
    return nn.ModuleDict({pair_name(pair): make(student, teacher) for pair in wanted})


def first(states: Tensor, mask: Tensor) -> Tensor:
    """The state b d of the first real token of each row."""
    return states[torch.arange(len(states), device=states.device), mask.int().argmax(1)]


def layers_in(pairs: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Which layers student and teacher have to record for these pairs."""
    return sorted({i for i, _ in pairs}), sorted({j for _, j in pairs})


def _through(link: nn.Module | None, states: Tensor) -> Tensor:
    return states if link is None else link(states)
