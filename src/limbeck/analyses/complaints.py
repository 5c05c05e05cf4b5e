"""What the configurations of student, teacher and tokenizers say against a run; see ``analyses.doctor``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from textwrap import shorten
from typing import Any

import torch

from limbeck.analyses.case import Case, Said, Side
from limbeck.evaluation.model import logits_of, table_height

PROBE = "A probe: 12 words, Ünïcode & ends.\nWith lines"


def tokenizers(case: Case) -> Iterator[Said]:
    """Both sides read the same ids, or each its own."""
    ours, theirs = (side.tokenizer for side in case.sides)
    if ours is None or theirs is None:
        return
    sizes = f"of {_tokens(ours)} and {_tokens(theirs)} tokens"
    if _alike(ours, theirs):
        yield "ok", f"one tokenizer of {_tokens(ours)} tokens"
    elif case.batch is not None and case.crossed:
        where = case.batch.get("answer", case.batch["mask"])
        joint = case.batch["aligned"].sum() / where.sum().clamp(min=1)
        level, kind = "note" if joint > 0 else "stop", "supervised places" if "answer" in case.batch else "tokens"
        yield level, f"different tokenizers {sizes}; both have read the same at {joint:.0%} of the {kind}"
    else:
        yield "stop", f"different tokenizers {sizes}, and rows in one cut only: the teacher would read foreign ids"


def ends(case: Case) -> Iterator[Said]:
    """Each side begins and ends a text as its tokenizer and its generation do, and both alike."""
    if not case.writes:
        return
    marks = []
    for side in case.sides:
        if side.tokenizer is None:
            continue
        end, stops = side.tokenizer.eos_token, _stops(side)
        marks.append((side.name, end))
        if stops and side.tokenizer.eos_token_id not in stops:
            yield (
                "note",
                f"the {side.name}'s tokenizer ends a text with {end!r}, but its model stops at {_named(side, stops)}",
            )
    if len({end for _, end in marks}) > 1 and not case.crossed:
        yield (
            "note",
            f"texts end with {' and with '.join(f'{end!r} ({name})' for name, end in marks)}: answers may run on",
        )
    firsts = {side.name: _first(side.tokenizer) for side in case.sides if side.tokenizer is not None}
    if len(set(firsts.values())) > 1 and not case.crossed:
        yield "note", f"texts begin with {' and with '.join(f'{first!r} ({name})' for name, first in firsts.items())}"
    if marks and all(end is None for _, end in marks):
        yield "note", "no tokenizer has an end-of-text token, so the student cannot learn to stop"
    elif marks:
        yield "ok", f"end of text {marks[0][1]!r}, padding {case.student.tokenizer.pad_token!r} (masked by length)"


def chat_templates(case: Case) -> Iterator[Said]:
    """Conversations are laid out alike."""
    if not case.writes:
        return
    ours, theirs = (getattr(side.tokenizer, "chat_template", None) for side in case.sides)
    if ours == theirs:
        yield "ok", "none" if ours is None else "the same"
    elif ours is None or theirs is None:
        yield "note", f"only the {'teacher' if ours is None else 'student'} has one"
    else:
        how = "each side reads conversations in its own" if case.crossed else "both sides read the student's"
        yield "note", f"they differ; {how}"


def output_layers(case: Case) -> Iterator[Said]:
    """There is a row for every token, in the table and in the output layer; what is more is padding."""
    widths = {}
    for side in case.sides:
        if side.tokenizer is None:
            continue
        tokens, width = _tokens(side.tokenizer), logits_of(side.source)
        height = None if side.model is None else table_height(side.model)
        for rows, what in ((width, "output layer"), (height, "table of embeddings")):
            if rows is not None and rows < tokens:
                yield "stop", f"the {side.name}'s {what} has {rows} rows, but its tokenizer {tokens} tokens"
        if width is not None:
            widths[side.name] = width
            yield "ok", f"{side.name}: {width} rows for {tokens} tokens"
    if len(set(widths.values())) > 1 and not case.crossed:
        yield "note", f"one is padded further than the other: the first {min(widths.values())} rows are compared"


def classes(case: Case) -> Iterator[Said]:
    """Classifiers tell the same classes apart, in the same order."""
    told = {side.name: _class_names(side.model.config) for side in case.sides if _classifies(side.model)}
    if len({tuple(names) for names in told.values()}) > 1:
        both = " and ".join(f"{', '.join(names)} ({name})" for name, names in told.items())
        yield "stop", f"the classes, or their order, differ: {both}"
    elif names := next(iter(told.values()), []):
        yield "ok", f"{len(names)}: {shorten(', '.join(names), 60, placeholder=' ...')}"


def caps_and_scales(case: Case) -> Iterator[Said]:
    """What a family does to its logits."""
    for side in case.sides:
        if side.model is not None and (found := _caps(side.model)):
            yield "ok", f"{side.name}: {', '.join(f'{name} {value:g}' for name, value in found.items())}, which is kept"


def number_formats(case: Case) -> Iterator[Said]:
    """The student can take small steps, and the teacher does not overflow."""
    formats = {side.name: _format(side.model) for side in case.sides if side.model is not None}
    if case.one_model:
        pass
    elif formats.get("student") == torch.float16:
        yield (
            "stop",
            "the student is held in float16, where small steps are lost and large values overflow; use float32",
        )
    elif formats.get("student") == torch.bfloat16:
        yield (
            "note",
            "the student is held in bfloat16, where steps below 1/256 of a weight are lost; float32 keeps them",
        )
    if formats.get(case.teacher.name) == torch.float16:
        yield "note", f"the {case.teacher.name} is held in float16, which overflows at 65504; bfloat16 does not"
    if formats:
        yield "ok", ", ".join(f"{name} {str(kind).removeprefix('torch.')}" for name, kind in formats.items())


def weights(case: Case) -> Iterator[Said]:
    """Every weight is a number."""
    for side in case.sides:
        if side.model is None:
            continue
        if bad := [name for name, value in _tensors(side.model) if not torch.isfinite(value).all()]:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            yield "stop", f"the {side.name}'s weights {bad[0]}{more} hold NaN or infinity"
    ours, theirs = (side.model for side in case.sides)
    if ours is not None and theirs is not None and ours is not theirs and _equal(ours, theirs):
        yield "note", "student and teacher have the same weights, so there is nothing to learn from their difference"


COMPLAINTS: list[Callable[[Case], Iterator[Said]]] = [
    tokenizers,
    ends,
    chat_templates,
    output_layers,
    classes,
    caps_and_scales,
    number_formats,
    weights,
]


def _alike(ours: Any, theirs: Any) -> bool:
    if ours is theirs:
        return True
    cut = [tokenizer(PROBE, add_special_tokens=False)["input_ids"] for tokenizer in (ours, theirs)]
    return ours.get_vocab() == theirs.get_vocab() and cut[0] == cut[1]


def _tokens(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def _stops(side: Side) -> list[int]:
    """Ids at which the model's own generation ends."""
    said = getattr(getattr(side.model, "generation_config", None), "eos_token_id", None)
    return [] if said is None else [said] if isinstance(said, int) else list(said)


def _named(side: Side, ids: list[int]) -> str:
    return " or ".join(map(repr, side.tokenizer.convert_ids_to_tokens(ids)))


def _classifies(model: Any) -> bool:
    return type(model).__name__.endswith("ForSequenceClassification")


def _class_names(config: Any) -> list[str]:
    return [str(config.id2label[index]).removeprefix("LABEL_") for index in range(config.num_labels)]


def _first(tokenizer: Any) -> str | None:
    """The special token that the tokenizer puts in front of a text."""
    first = tokenizer("a")["input_ids"][:1]
    return tokenizer.convert_ids_to_tokens(first)[0] if first and first[0] in tokenizer.all_special_ids else None


def _caps(model: Any) -> dict[str, float]:
    config = model.config.get_text_config(decoder=True)
    names = ("final_logit_softcapping", "logit_scale", "lm_head_multiplier", "logits_scaling")
    return {name.replace("_", " "): float(value) for name in names if (value := getattr(config, name, None))}


def _format(model: Any) -> torch.dtype | None:
    return next((value.dtype for _, value in _tensors(model)), None)


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's parameters that are numbers, and here."""
    for name, value in model.named_parameters():
        if value.is_floating_point() and value.device.type != "meta" and not hasattr(value, "full_tensor"):
            yield name, value


def _equal(ours: Any, theirs: Any) -> bool:
    """Whether both have the same parameters; decided at the first that differs."""
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    if mine.keys() != other.keys() or any(mine[n].shape != other[n].shape for n in mine):
        return False
    return all(
        torch.equal(value.to(other[name].device, other[name].dtype), other[name]) for name, value in mine.items()
    )
