"""The way of ``fused`` over the positions: chunks for the matrix products, blocks for what is done to each logit."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.core.check import LimbeckError, require
from limbeck.losses import products
from limbeck.losses.closed import Form, Rows, by_autograd, closed_form, cross_entropy
from limbeck.losses.heads import Head, Logits, finish, flat_teacher, held, project

CHUNK_ROWS = 128
"""Positions per chunk, at least: with fewer, the matrix products wait for the weights to come from memory. (Twice as
many are 2 % faster with 65,536 tokens and width 512, and take a third more memory in all.)"""
CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**26}
"""Logits per chunk, at least: small vocabularies take more positions at a time."""
BLOCK_LOGITS = 2**17
"""Logits per block and thread on a CPU: small enough for the cache, where a dozen operations find them again."""


Three = Sequence[Tensor | None]
"""Something for each of hidden n d, weight v d and bias v, or None."""


class Part(NamedTuple):
    """One of several losses that share a sweep: a divergence, or None for the cross-entropy to ``targets`` ... .

    ``weight``: what its values are going to be multiplied by, beside the other parts'. It does not change them; it lets
    the forward pass prepare the gradient that will be asked for.
    """

    divergence: Callable[..., Tensor] | None
    temperature: float | Tensor = 1.0
    targets: Tensor | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Loss:
    """A part made ready: its closed form, the way by autograd, 1 / temperature, targets n."""

    fast: Form
    slow: Form
    inverse: float | Tensor
    targets: Tensor | None

    @classmethod
    def of(cls, part: Part, count: int, fastest: Callable[[Form], Form]) -> Loss:
        """``part`` for ``count`` positions."""
        if part.divergence is None:
            assert part.targets is not None
            return cls(fastest(cross_entropy), by_autograd, 1.0, part.targets.reshape(-1))
        form = closed_form(part.divergence)
        if form is None:
            raise LimbeckError(f"no fused form is known for {part.divergence}; call it on logits")
        slow = partial(by_autograd, divergence=part.divergence)
        return cls(fastest(form), slow, _inverse(part.temperature, count), None)

    def rows(self, at: slice) -> float | Tensor:
        """1 / temperature of some positions, a number or m 1."""
        return self.inverse if isinstance(self.inverse, float) else self.inverse[at]

    def __call__(self, rows: Rows, at: slice, careful: bool) -> tuple[Tensor, float]:
        """Values m 1 and a factor of the gradient, see ``closed.Form``."""
        form = self.slow if careful else self.fast
        return form(rows) if self.targets is None else form(rows, targets=self.targets[at])


class Plan:
    """What is to be computed, without the student's tensors: those are handed over by autograd."""

    def __init__(self, student: Head, teacher: Logits | None, parts: Sequence[Part], chunk: int | None) -> None:
        self.scale, self.softcap = student.scale, student.softcap
        self.count, self.size = student.hidden.shape[0], student.weight.shape[0]
        require(self.size > 1, "a softmax over one candidate is always 1 and teaches nothing; give at least two")
        self.device = student.hidden.device
        double = torch.float64 in (student.hidden.dtype, student.weight.dtype)
        self.dtype = torch.float64 if double else torch.float32
        self.teacher = flat_teacher(teacher, self.count, self.size)
        fastest = partial(_fastest, device=self.device, dtype=self.dtype)
        self.losses = [Loss.of(part, self.count, fastest) for part in parts]
        self.weights = torch.tensor([[part.weight] for part in parts], dtype=self.dtype, device=self.device)
        on = "cuda" if self.device.type == "cuda" else "cpu"
        self.chunk = max(1, min(chunk or self._evenly(max(CHUNK_ROWS, CHUNK_LOGITS[on] // self.size)), self.count))
        rows = torch.get_num_threads() * max(1, BLOCK_LOGITS // self.size)
        self.block = min(rows, self.chunk) if on == "cpu" else self.chunk
        half = on == "cuda" and not double and torch.is_autocast_enabled("cuda")
        self.held = torch.bfloat16 if half and torch.get_autocast_dtype("cuda") == torch.bfloat16 else None

    def _evenly(self, rows: int) -> int:
        """At most ``rows``, so that all chunks are of about one size."""
        return -(-self.count // max(1, -(-self.count // rows)))

    def common_factor(self, upstream: Tensor) -> float | None:
        """What the prepared gradients have to be multiplied by; None if positions do not count alike."""
        if not upstream.numel():
            return 1.0
        lead = int(self.weights.abs().argmax())
        factor = upstream[lead, 0] / self.weights[lead, 0]
        slack = 4 * torch.finfo(self.dtype).eps * (factor * self.weights).abs()
        return float(factor) if ((upstream - factor * self.weights).abs() <= slack).all() else None

    @torch.no_grad()
    def run(self, student: Three, need: Sequence[bool], upstream: Tensor | None = None) -> tuple[Tensor, Three]:
        """Values k n of the k parts, and what of the gradients of ``sum(upstream * values)`` is needed.

        ``student``: hidden states, weight and bias. Without ``upstream`` k n, positions count as their part's weight.
        """
        hidden, weight, bias = student
        assert hidden is not None
        assert weight is not None
        head = Head(hidden, weight, bias, self.scale, self.softcap)
        upstream = (self.weights if upstream is None else upstream.to(self.dtype)).expand(-1, self.count)
        with torch.autocast(self.device.type, enabled=False):
            sweep = Sweep(self, head, need, upstream)
            for start in range(0, self.count, self.chunk):
                sweep.chunk(slice(start, min(start + self.chunk, self.count)))
        return sweep.values, sweep.gradients


class Sweep:
    """A plan under way: results, and the buffers that every chunk and block uses again."""

    def __init__(self, plan: Plan, student: Head, need: Sequence[bool], upstream: Tensor) -> None:
        self.plan, self.upstream = plan, upstream
        self.student, self.teacher = held(student, plan.held), held(plan.teacher, plan.held)
        self.values = self._new(len(plan.losses), plan.count)
        make = torch.empty_like if plan.count else torch.zeros_like
        wanted = zip(need, student[:3], strict=False)
        self.gradients = [make(x, dtype=plan.dtype) if yes and x is not None else None for yes, x in wanted]
        if self.gradients[2] is not None:
            self.gradients[2].zero_()
        self.logits = [self._new(plan.chunk, plan.size) for side in (self.student, self.teacher) if side is not None]
        self.factors = self._new(plan.chunk, 1)
        self.buffers: dict[str, Tensor] = {}

    def _new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.plan.dtype, device=self.plan.device)

    def _buffer(self, name: str, rows: int) -> Tensor:
        """Room for a block, ``rows`` x v, that is used under this name only."""
        if name not in self.buffers:
            self.buffers[name] = self._new(self.plan.block, self.plan.size)
        return self.buffers[name][:rows]

    def chunk(self, at: slice) -> None:
        """Values and gradients of the positions ``at``."""
        self._logits(at, careful=False)
        if not self.values[:, at].isfinite().all():
            self._logits(at, careful=True)
        self._collect(at)

    def _logits(self, at: slice, careful: bool) -> None:
        """Logits of a chunk, then values, and the gradient in place of the student's logits."""
        rows = at.stop - at.start
        for side, buffer in zip((self.student, self.teacher), self.logits, strict=False):
            project(side, at, buffer[:rows])
        for start in range(0, rows, self.plan.block):
            here = slice(start, min(start + self.plan.block, rows))
            for side, buffer in zip((self.student, self.teacher), self.logits, strict=False):
                finish(side, buffer[here])
            self._block(here, slice(at.start + here.start, at.start + here.stop), careful)

    def _block(self, here: slice, at: slice, careful: bool) -> None:
        """Positions ``at``, which are rows ``here`` of the chunk."""
        student, teacher = self.logits[0][here], self.logits[1][here] if self.teacher is not None else None
        alone, cap, count = len(self.plan.losses) == 1, self.student.softcap, len(student)
        total = student if alone and cap is None else self._buffer("total", count)
        if not alone:
            total.zero_()
        for number, loss in enumerate(self.plan.losses):
            out = total if alone else self._buffer("out", count)
            inverse = loss.rows(at)
            rows = self._warmed(student, teacher, out, inverse, alone)
            values, factor = loss(rows, at, careful)
            self.values[number, at] = values.squeeze(-1)
            weights = self.upstream[number, at].unsqueeze(-1) * (factor * inverse)
            if alone:
                self.factors[here] = weights
            else:
                total.addcmul_(out, weights)
        if not alone:
            self.factors[here] = 1
        if total is not student:
            student.copy_(total) if cap is None else student.div_(cap).square_().neg_().add_(1).mul_(total)

    def _warmed(
        self, student: Tensor, teacher: Tensor | None, out: Tensor, inverse: float | Tensor, alone: bool
    ) -> Rows:
        """The block after the temperature; several losses get copies, because each writes over what it reads."""
        same = isinstance(inverse, float) and inverse == 1
        if not same or not alone:
            count = len(student)
            student = torch.mul(student, inverse, out=self._buffer("student", count))
            if teacher is not None:
                teacher = torch.mul(teacher, inverse, out=teacher if alone else self._buffer("teacher", count))
        return Rows(student, teacher, out, lambda number: self._buffer(f"spare {number}", len(student)))

    def _collect(self, at: slice) -> None:
        """Take the gradient of a chunk's logits back to hidden states, weight and bias."""
        rows = at.stop - at.start
        gradient, factors = self.logits[0][:rows], self.factors[:rows] * self.student.scale
        hidden, weight, bias = self.gradients
        if hidden is not None:
            products.to_hidden(gradient, self.student.weight, hidden[at])
            hidden[at] *= factors
        if weight is not None:
            states = self.student.hidden[at].to(gradient.dtype) * factors
            products.to_weight(gradient, states, self.student.weight, weight, first=at.start == 0)
        if bias is not None:
            bias.addmv_(gradient.t(), factors.squeeze(-1))


def _fastest(form: Form, device: torch.device, dtype: torch.dtype) -> Form:
    """``form`` as a kernel of ``triton_rows`` if the environment asks for it and it can run here."""
    if os.environ.get("LIMBECK_TRITON") != "1":
        return form
    try:
        from limbeck.losses import triton_rows
    except ImportError as missing:
        raise LimbeckError(
            "LIMBECK_TRITON=1 asks for Triton, which is not installed; pip install triton, or unset it"
        ) from missing
    return triton_rows.kernel_form(form) if triton_rows.usable(device, dtype) else form


def _inverse(temperature: float | Tensor, count: int) -> float | Tensor:
    """1 / temperature, a number or n 1."""
    if not isinstance(temperature, Tensor):
        require(temperature > 0, f"the temperature must be positive, but got {temperature}")
        return 1 / temperature
    require(not temperature.requires_grad, "the temperature of a fused loss gets no gradient; detach it")
    require(bool((temperature > 0).all()), "temperatures must be positive")
    if temperature.numel() == 1:
        return 1 / float(temperature)
    require(
        temperature.numel() == count, f"{temperature.numel()} temperatures for {count} positions; give one for each"
    )
    return (1 / temperature).reshape(-1, 1)
