"""A student and a teacher, whatever their tokenizers: one function says what to train with.

    pair = across(model_source(student), model_source(teacher), tokenizer, teacher_tokenizer)
    stream = pair.batches("chats.jsonl", length=512, batch=8)
    step = distill_step(pair.student, pair.teacher, weighted(soft=(1, pair.soft(forward_kl)), hard=(0.5, hard())))

- ``pair.kind == "equal"``: the sources as they came, ``soft`` over ``answer``, ordinary batches.
- ``"padded"``: one tokenizer, output layers of different widths, as in one family's small and large models: both are
  cut to the narrower one, which holds every token. ``pair.note`` says so.
- ``"different"``: the batch holds both cuts of the text (``data.crossed``), the teacher reads its own
  (``sources.vocabulary.elsewhere``), and ``soft`` compares what both vocabularies can say where both have read the same
  (``objectives.across.shared``). ``hard()`` is unchanged: the student's own tokens. ``objectives.across`` has more for
  such a pair: ``spans()`` compares whole chunks, ``uld()`` is the baseline.

For a method that needs one tokenizer, ``side_by_side(student, teacher, tokenizer)`` gives two models as sources, cut to
one width where they are padded. A batch that was made elsewhere becomes one with both cuts by
``data.crossed.beside(batch, rows)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from limbeck.analyses.agreement import ByRow, agreement
from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError, require
from limbeck.core.signals import Source
from limbeck.core.stage import Objective
from limbeck.core.terms import Weight
from limbeck.data.crossed import crossed_batches, row_batches, text_rows
from limbeck.data.pairs import causal_batches
from limbeck.data.spelling import Events, shared_events
from limbeck.data.stream import Batches, lm_batches
from limbeck.evaluation.model import logits_of
from limbeck.losses.divergence import forward_kl
from limbeck.models.tokenizers import check_same_tokenizer
from limbeck.objectives.across import chunk_log_probs, in_pieces, lumps_of, pieces, shared
from limbeck.objectives.tokens import Divergence, soft
from limbeck.sources.vocabulary import Padded, elsewhere, padded
from limbeck.teachers import heard

Kind = Literal["equal", "padded", "different"]


@dataclass(frozen=True)
class Across:
    """A student and a teacher that can be compared, how (``kind``), and a ``note`` where something was done for it."""

    student: Source
    teacher: Source
    kind: Kind
    note: str
    tokenizers: tuple[Any, Any]
    events: Events | None = None

    @property
    def on(self) -> str:
        """The mask of the batch over whose places the two are compared."""
        return "aligned" if self.kind == "different" else "answer"

    def soft(self, divergence: Divergence = forward_kl, temperature: Weight = 1.0, rescale: bool = False) -> Objective:
        """``objectives.tokens.soft`` for this pair; the plain one unless the tokenizers differ."""
        goal = soft(divergence, temperature, self.on, rescale)
        if self.events is None:
            return goal
        return in_pieces(shared(goal, *self.events, temperature=temperature))

    def text_batches(self, texts: Iterable[str], length: int, batch: int, seed: int = 0) -> Batches:
        """``batches`` of running text that is at hand."""
        if self.kind != "different":
            return lm_batches(texts, self.tokenizers[0], length, batch, seed)
        return row_batches(list(text_rows(texts, *self.tokenizers, length)), batch, seed)

    def near(self, batches: Sequence[Batch]) -> Callable[[Source | None], ByRow]:
        """How near a student, given as a source, is to the teacher on ``batches``; None measures the teacher itself.

        ``analyses.agreement`` per token; where the tokenizers differ per chunk of both cuts, with divergence and first
        choice over what both can say. The student need not be that of the pair, for there may be several.
        """
        if self.kind == "different":
            return lambda student: _by_chunk(self, student, batches)
        cut = self.student.size if isinstance(self.student, Padded) else None

        def measured(student: Source | None) -> ByRow:
            if student is None:
                return agreement(self.teacher, None, batches)
            return agreement(student if cut is None else padded(student, cut), self.teacher, batches)

        return measured

    def batches(self, source: str | Path, length: int, batch: int, seed: int = 0) -> Batches:
        """``data.pairs.causal_batches``, with both cuts where the tokenizers differ."""
        if self.kind != "different":
            return causal_batches(source, self.tokenizers[0], length, batch, seed)
        return crossed_batches(source, *self.tokenizers, length, batch, seed)


def across(student: Source, teacher: Source, tokenizer: Any, teacher_tokenizer: Any) -> Across:
    """How ``student``, which reads by ``tokenizer``, is compared with ``teacher``, which reads by its own.

    Raises ``LimbeckError`` where they cannot be: a tokenizer without tokenizer.json, hardly a token in common, or an
    output layer that is narrower than the tokenizer. Sources of which the width is not known are taken as they are.
    """
    tokenizers = (tokenizer, teacher_tokenizer)
    made = partial(Across, tokenizers=tokenizers)
    if reason := differ(*tokenizers):
        note = f"{reason}; compared where both have read the same bytes, by what their tokens spell"
        return made(student, elsewhere(teacher), "different", note, events=shared_events(*tokenizers))
    widths = [logits_of(source) for source in (student, teacher)]
    size = _tokens(tokenizer)
    for width, whose in zip(widths, ("student", "teacher"), strict=True):
        require(
            width is None or width >= size,
            f"the {whose}'s output layer has {width} rows, but its tokenizer has {size} tokens; give it the tokenizer "
            "that it was trained with",
        )
    if None in widths or widths[0] == widths[1]:
        return made(student, teacher, "equal", "")
    least = min(width for width in widths if width is not None)
    note = f"output layers of {widths[0]} (student) and {widths[1]} rows (teacher) for one tokenizer of {size} tokens; "
    return made(padded(student, least), padded(teacher, least), "padded", f"{note}the first {least} are compared")


@torch.no_grad()
def _by_chunk(pair: Across, student: Source | None, batches: Sequence[Batch]) -> ByRow:
    """The measures of ``analyses.agreement`` with the chunk as the unit, for the student or the teacher alone."""
    assert pair.events is not None
    lumps = lumps_of(*pair.events)
    counts, parts = [], []
    for batch in batches:
        theirs = pair.teacher(batch)
        logs = chunk_log_probs(theirs.need("own"), batch, "teacher_")
        values = {"nll": -logs}
        if student is not None:
            ours, said = student(batch), []
            for some in pieces(batch["aligned"]):
                mine, other = (lump(s.logits_at(some)) for lump, s in zip(lumps, (ours, theirs), strict=True))
                said.append((forward_kl(mine, other), mine.argmax(-1) == other.argmax(-1)))
            kl, top1 = (torch.cat(each) for each in zip(*said, strict=True))
            values = {"nll": -chunk_log_probs(ours, batch), "kl": kl, "top1": top1}
        rows = batch["aligned"].nonzero()[:, 0]
        counts.append(batch["aligned"].sum(1).cpu().numpy())
        empty = torch.zeros(len(batch["aligned"]), dtype=torch.float64, device=rows.device)
        parts.append({name: empty.index_add(0, rows, v.double()).cpu().numpy() for name, v in values.items()})
    return ByRow(np.concatenate(counts), {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def side_by_side(student: Any, teacher: Any, tokenizer: Any = None) -> tuple[Source, Source]:
    """A model and a teacher that share ``tokenizer`` as sources with equally many logits, however they are padded.

    The teacher may be a source already. Without a tokenizer they are taken as they are.
    """
    ours, theirs = heard(student), heard(teacher)
    if tokenizer is None:
        return ours, theirs
    pair = across(ours, theirs, tokenizer, tokenizer)
    return pair.student, pair.teacher


def differ(ours: Any, theirs: Any) -> str:
    """Why two tokenizers are not one; empty if they are."""
    if ours is theirs:
        return ""
    try:
        check_same_tokenizer(ours, theirs)
    except LimbeckError:
        sizes = f"{_tokens(ours)} and {_tokens(theirs)} tokens"
        return f"student and teacher read by different tokenizers of {sizes}"
    return ""


def _tokens(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values()) + 1
