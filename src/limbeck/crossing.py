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

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from limbeck.core.check import LimbeckError, require
from limbeck.core.signals import Source, model_behind
from limbeck.core.stage import Objective
from limbeck.core.terms import Weight
from limbeck.data.crossed import crossed_batches
from limbeck.data.pairs import causal_batches
from limbeck.data.spelling import Events, shared_events
from limbeck.data.stream import Batches
from limbeck.evaluation.model import head_width
from limbeck.losses.divergence import forward_kl
from limbeck.models.tokenizers import check_same_tokenizer
from limbeck.objectives.across import in_pieces, shared
from limbeck.objectives.tokens import Divergence, soft
from limbeck.sources.vocabulary import elsewhere, padded
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
    if reason := _differ(*tokenizers):
        note = f"{reason}; compared where both have read the same bytes, by what their tokens spell"
        return made(student, elsewhere(teacher), "different", note, events=shared_events(*tokenizers))
    widths = [_width(source) for source in (student, teacher)]
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


def side_by_side(student: Any, teacher: Any, tokenizer: Any = None) -> tuple[Source, Source]:
    """A model and a teacher that share ``tokenizer`` as sources with equally many logits, however they are padded.

    The teacher may be a source already. Without a tokenizer they are taken as they are.
    """
    ours, theirs = heard(student), heard(teacher)
    if tokenizer is None:
        return ours, theirs
    pair = across(ours, theirs, tokenizer, tokenizer)
    return pair.student, pair.teacher


def _differ(ours: Any, theirs: Any) -> str:
    """Why two tokenizers are not one; empty if they are."""
    if ours is theirs:
        return ""
    try:
        check_same_tokenizer(ours, theirs)
    except LimbeckError:
        sizes = f"{_tokens(ours)} and {_tokens(theirs)} tokens"
        return f"student and teacher read by different tokenizers of {sizes}"
    return ""


def _width(source: Source) -> int | None:
    """How many logits a source gives, if that is known without asking it."""
    return head_width(model_behind(source)) or getattr(source, "width", None)


def _tokens(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values()) + 1
