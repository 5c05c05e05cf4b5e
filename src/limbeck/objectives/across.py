"""Objectives for a teacher with another tokenizer: its signals come from ``sources.vocabulary.elsewhere``.

The batch is one of ``data.crossed``. Every objective is averaged over ``aligned``, the places where both have read the
same text, of which there are as many as chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.signals import Readout, Signals
from limbeck.core.stage import Objective
from limbeck.core.terms import Clock, Terms, Weight, per, weight_at
from limbeck.losses.across import binary_kl
from limbeck.losses.across import uld as sorted_distance
from limbeck.losses.divergence import cross_entropy, upcast
from limbeck.objectives.named import named, unit
from limbeck.objectives.tokens import Comparison, Divergence, compare, logits_on

AT_ONCE = 256
"""Places whose logits are held at a time; the gradient computes them again."""
Ids = Sequence[Sequence[int]]


def shared(goal: Objective, ours: Ids, theirs: Ids, sizes: tuple[int, int], temperature: Weight = 1.0) -> Objective:
    """``goal`` over what both vocabularies can say: event k is any of the ids ``ours[k]`` and any of ``theirs[k]``.

    An event is as probable as its tokens together. All other ids of a side are one more event, the rest; if one side's
    tokenizer (``sizes`` tokens) has no others, the other's are left out and the events share all. ``temperature`` is
    that of ``goal``: it acts on the tokens, before they are added up.

    Where every id is an event of its own, in their order, ``goal`` gets the logits as they are.
    """
    lumps = lumps_of(ours, theirs, sizes)

    @named("shared", goal, events=len(ours), temperature=temperature)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        degrees = weight_at(temperature, clock)
        mine, other = (_lumped(s, lump, degrees) for s, lump in zip((student, teacher), lumps, strict=True))
        return goal(mine, other, batch, clock)

    return objective


def lumps_of(ours: Ids, theirs: Ids, sizes: tuple[int, int]) -> tuple[Lumps, Lumps]:
    """What makes events of either side's tokens; see ``shared``."""
    rest = all(len({i for event in side for i in event}) < n for side, n in zip((ours, theirs), sizes, strict=True))
    return Lumps(ours, rest), Lumps(theirs, rest)


def uld(temperature: Weight = 1.0, on: str = "aligned") -> Objective:
    """Universal Logit Distillation (2402.12030): sorted probabilities, whatever they belong to. Term: ``uld``.

    ``on="paired"`` pairs the places of both sides by their order, as the paper does, and not by the text before them;
    the teacher is then heard through ``elsewhere(..., on="paired")``.
    """

    @named("uld", temperature=temperature, on=on)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        ours, theirs = logits_on(student, batch, on), logits_on(teacher, batch, on)
        _check(theirs)
        return per(on, sorted_distance(ours, theirs, weight_at(temperature, clock)), "uld")

    return objective


def spans(divergence: Divergence = binary_kl, temperature: Weight = 1.0) -> Objective:
    """The probability of each chunk of the text: the product of its tokens', each after the text before it.

    ``divergence`` compares log-probabilities of chunks (``losses.across``). Term: ``spans``.
    """

    @named("spans", divergence, temperature=temperature)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        ours, theirs = chunk_log_probs(student, batch, ""), chunk_log_probs(teacher.need("own"), batch, "teacher_")
        _check(theirs[:, None])
        return per("aligned", divergence(ours, theirs, weight_at(temperature, clock)), "spans")

    return objective


def in_pieces(goal: Objective, on: str = "aligned", at_once: int = AT_ONCE) -> Objective:
    """``goal``, which is averaged over ``batch[on]``, with the logits of ``at_once`` places in memory at a time."""

    @named("in_pieces", goal, on=on, at_once=at_once)
    def objective(student: Signals, teacher: Signals, batch: Batch, clock: Clock) -> Terms:
        total = Terms()
        for some in pieces(unit(batch, on), at_once):
            part = checkpoint(goal, student, teacher, batch | {on: some}, clock, use_reentrant=False)
            for name, term in part.items():
                total[name] = term._replace(sum=total[name].sum + term.sum) if name in total else term
        return total

    return objective


def pieces(places: Tensor, at_once: int = AT_ONCE) -> Iterator[Tensor]:
    """``places`` b t in masks of at most ``at_once`` true entries each, one at least."""
    if places.sum() <= at_once:
        yield places
        return
    for index in places.flatten().nonzero()[:, 0].split(at_once):
        yield torch.zeros_like(places).flatten().index_fill(0, index, True).view_as(places)


def chunk_log_probs(signals: Signals, batch: Batch, side: str = "") -> Tensor:
    """Log-probabilities n of the chunks of one side ("" or "teacher_"), in order."""
    require(f"{side}chunk" in batch, f"spans: needs '{side}chunk' in the batch, which holds only {sorted(batch)}")
    chunk, targets, starts = (batch[side + name] for name in ("chunk", "targets", "aligned"))
    index = chunk + torch.arange(len(chunk), device=chunk.device)[:, None] * (chunk.max() + 1)
    chosen = (chunk > 0) & (targets >= 0)
    said = _log_probs(signals, chosen, targets)
    sums = said.new_zeros(index.numel() + 1).index_add(0, index[chosen], said)
    return sums[index[starts]]


def _check(teacher: Tensor) -> None:
    """Refuse values n v of a teacher that hold NaN or plus infinity."""
    require(
        torch.isfinite(teacher.amax(-1)).all(),
        "the teacher's logits hold NaN or infinity; check its weights and its precision (float16 overflows where "
        "bfloat16 does not)",
    )


def _log_probs(signals: Signals, places: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities n of ``targets`` b t at ``places`` b t, fused or in pieces."""
    if signals.logits is None and isinstance(signals.readout, Readout):
        nll = Comparison("nll", "places")
        return -compare([nll], signals, signals, {"places": places, "targets": targets})[0]

    def some(where: Tensor) -> Tensor:
        return -cross_entropy(signals.logits_at(where), targets[where])

    return torch.cat([checkpoint(some, where, use_reentrant=False) for where in pieces(places, AT_ONCE)])


class Lumps:
    """Adds up the probabilities of tokens that are one event."""

    def __init__(self, events: Ids, rest: bool) -> None:
        self.rest = rest
        self.first = torch.tensor([event[0] for event in events])
        self.more = [  # second tokens of the events that have one, third tokens, ...
            (torch.tensor(which), torch.tensor([events[k][n] for k in which]))
            for n in range(1, max(map(len, events)))
            if (which := [k for k, event in enumerate(events) if len(event) > n])
        ]
        self.plain = not rest and not self.more and torch.equal(self.first, torch.arange(len(events)))

    def __call__(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits ... v of tokens as logits ... k of events, to be divided by the same ``temperature``."""
        require(temperature > 0, f"the temperature must be positive, but got {temperature}")
        if self.plain:
            return logits[..., : len(self.first)]
        logits, device = upcast(logits) / temperature, logits.device
        events = logits[..., self.first.to(device)]
        for which, tokens in self.more:
            which = which.to(device)
            both = torch.logaddexp(events[..., which], logits[..., tokens.to(device)])
            events = events.index_copy(-1, which, both)
        if self.rest:
            others = logits[..., self._others(logits.shape[-1]).to(device)].logsumexp(-1, keepdim=True)
            events = torch.cat([events, others], -1)
        return events * temperature

    def _others(self, size: int) -> Tensor:
        left = torch.ones(size, dtype=torch.bool)
        for tokens in (self.first, *(tokens for _, tokens in self.more)):
            left[tokens] = False
        return left.nonzero()[:, 0]


def _lumped(said: Signals, lumps: Lumps, temperature: float) -> Signals:
    return replace(said, logits=None, readout=_Lumped(said, lumps, temperature))


@dataclass(frozen=True)
class _Lumped:
    """Logits of events, not computed yet (a ``core.signals.Lazy``)."""

    said: Signals = field(repr=False)
    lumps: Lumps
    temperature: float

    def at(self, positions: Tensor | None = None) -> Tensor:
        """Logits n k at the true entries of ``positions``, or all of them."""
        return self.lumps(self.said.logits_at(positions), self.temperature)
