"""What a few rows show against a run; see ``analyses.doctor``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeGuard

import torch

from limbeck.analyses.case import Case, Said, Side, Trial
from limbeck.core.batch import IGNORE
from limbeck.core.check import LimbeckError
from limbeck.evaluation.model import positions, table_height

WORSE_THAN_CHANCE = 1.0
"""Nats by which a teacher may miss a uniform guess: one that was never trained does, one that reads wrongly by more."""

FLOAT16 = 65504.0
NOT_APART = "cannot be read apart from it (adapted, quantised or unusual)"


def row_lengths(case: Case) -> Iterator[Said]:
    """No row is longer than a model can read, and no id without a row in its table."""
    for side in case.sides:
        if side.batch is None or side.model is None or "ids" not in side.batch:
            continue
        most, height, top = positions(side.model), table_height(side.model), int(side.batch["ids"].max())
        if most is not None and side.longest > most:
            yield "stop", f"rows of {side.longest} tokens, but the {side.name} reads {most}; shorten them"
        elif most is not None:
            yield "ok", f"{side.name}: {side.longest} of {most} tokens"
        if empty := _empty(side):
            level = "stop" if empty == len(side.batch["ids"]) else "note"
            yield level, f"{empty} of {len(side.batch['ids'])} rows hold no token that the {side.name} reads"
        if height is not None and top >= height:
            yield (
                "stop",
                f"the rows hold id {top}, but the {side.name}'s table has {height} rows; encode by its tokenizer",
            )


def supervision(case: Case) -> Iterator[Said]:
    """Something is supervised: a row's class, or real tokens by the one that follows or that was masked."""
    for side in case.sides if case.crossed else (case.student,):
        if not side.supervised:
            continue
        if side.by_row:
            yield from _rows(side)
        elif side.targets is not None:
            yield from _tokens(case, side, f"of the {side.name}'s " if case.crossed else "of the ")


def _rows(side: Side) -> Iterator[Said]:
    """The classes of rows."""
    known, labels = side.places, side.targets
    if not known.any():
        yield "stop", "none of the rows has a class"
    elif labels is not None:
        low, high, width = int(labels[known].min()), int(labels[known].max()), _width(side)
        if low < 0 or (width and high >= width):
            there = f", but the {side.name} tells {width} apart" if width else ""
            yield "stop", f"classes run from {low} to {high}{there}; they are numbered from 0"
        yield "ok", f"{int(known.sum())} of {len(known)} rows have a class"


def _tokens(case: Case, side: Side, of: str) -> Iterator[Said]:
    """Targets of tokens; ``of`` begins what the counts are of."""
    batch, places = side.batch, side.places
    assert batch is not None
    if not places.any():
        yield "stop", f"none {of}places is supervised; check what of the data is to be learned"
        return
    targets = batch["targets"][places]
    if (targets == IGNORE).any():
        yield "stop", f"{int((targets == IGNORE).sum())} {of}supervised places have no target"
    if "mask" in batch and (places & ~batch["mask"].bool()).any():
        yield "stop", "places behind a row's end are supervised"
    if _causal(side) and (wrong := _not_next(side)):
        yield "stop", f"{wrong} {of}targets are not the token that follows; they are shifted twice or not at all"
    if _guesses(side) and bool((batch["ids"][places] == targets).all()):
        yield "stop", "every supervised place shows its own target: no word is masked, so there is nothing to guess"
    if case.writes and (empty := int((~places.any(1)).sum())):  # words to be guessed are drawn, so a row may have none
        yield "note", f"{empty} of {len(places)} rows have nothing supervised"
    if not case.one_model and _has_prompts(side) and not _learns_to_stop(side):
        yield "note", "no target is the end of the text, so answers never learn to stop"
    real = int(batch["mask"].sum()) if "mask" in batch else places.numel()
    yield "ok", f"{int(places.sum())} {of}{real} tokens are {'to be guessed' if _guesses(side) else 'supervised'}"


def speech(case: Case) -> Iterator[Said]:
    """What they say is a number, and fits what they are held in."""
    for side in case.sides:
        trial = side.trial
        if isinstance(trial, LimbeckError):
            yield "stop", f"the {side.name} cannot be asked: {trial}"
        elif trial is not None and not trial.finite:
            yield "stop", f"the {side.name}'s {_what(trial)} hold NaN or infinity; check its weights and number format"
        elif trial is not None:
            yield "ok", f"{side.name}: {_what(trial)} up to {trial.largest:.3g}"
            if _half(side) and trial.largest > FLOAT16 / 4:
                size = f"{_what(trial)} of {trial.largest:.3g}"
                yield "note", f"the {side.name}'s {size} are near float16's end, {FLOAT16:.0f}"
            if not trial.late and side.model is not None:
                yield (
                    "note",
                    f"the {side.name}'s output layer {NOT_APART}, so logits of all places are computed at once",
                )


def perplexity(case: Case) -> Iterator[Said]:
    """The teacher predicts these rows better than a uniform guess, and than the student."""
    student, teacher = (side.trial for side in case.sides)
    if not case.taught or not _predicts(teacher):
        return
    name, unit = case.teacher.name, "row" if case.student.by_row else "token"
    nats, chance = float(teacher.nats.mean()), math.log(teacher.width)
    told, behind = f"{name} {nats:.2f}, a uniform guess {chance:.2f} nats per {unit}", False
    if _predicts(student):
        ours, theirs = _comparable(case, student, teacher)
        told = (
            f"student {ours:.2f}, {told}"
            if not case.crossed
            else f"{told}; per chunk of both cuts student {ours:.2f}, {name} {theirs:.2f}"
        )
        behind = theirs >= ours
    if nats > chance + WORSE_THAN_CHANCE:
        level, why = "stop" if case.strict else "note", "reads wrongly"
        if case.student.by_row:
            why = "numbers the classes otherwise"
        yield level, f"the {name} is far worse than a uniform guess, so it is untrained or {why}: {told}"
    elif nats > chance:
        yield "note", f"the {name} is no better than a uniform guess: {told}"
    elif behind:
        yield "note", f"the {name} is no better than the student on these rows: {told}"
    else:
        yield "ok", told


TRIALS: list[Callable[[Case], Iterator[Said]]] = [row_lengths, supervision, speech, perplexity]


def _comparable(case: Case, student: Trial, teacher: Trial) -> tuple[float, float]:
    """Mean nats of student and teacher over the same text: tokens, or chunks where the cuts differ."""
    if not case.crossed:
        return float(student.nats.mean()), float(teacher.nats.mean())
    sums = []
    for side, trial in zip(case.sides, (student, teacher), strict=True):
        assert side.batch is not None
        inside = side.batch["chunk"][side.places] > 0
        sums.append(float(trial.nats[inside].sum()) / max(1, int(side.batch["aligned"].sum())))
    return sums[0], sums[1]


def _not_next(side: Side) -> int:
    """How many targets are not the id at the place behind theirs."""
    assert side.batch is not None
    places, ids, targets = side.places, side.batch["ids"], side.batch["targets"]
    wrong = places[:, :-1] & (targets[:, :-1] != ids[:, 1:])
    return int(wrong.sum()) + int(places[:, -1].sum())


def _predicts(trial: Trial | LimbeckError | None) -> TypeGuard[Trial]:
    """Whether it has said how probable the targets are."""
    return isinstance(trial, Trial) and trial.finite and len(trial.nats) > 0


def _what(trial: Trial) -> str:
    return "logits" if trial.width else "states"


def _width(side: Side) -> int:
    """How many classes the side tells apart; 0 where it does not say."""
    return side.trial.width if isinstance(side.trial, Trial) else 0


def _empty(side: Side) -> int:
    """Rows without a real token."""
    assert side.batch is not None
    return int((~side.batch["mask"].bool().any(1)).sum()) if "mask" in side.batch else 0


def _guesses(side: Side) -> bool:
    """Whether the side guesses masked tokens, as the name of its class says."""
    return type(side.model).__name__.endswith("ForMaskedLM")


def _causal(side: Side) -> bool:
    """Whether the side predicts the next token, as the name of its class says."""
    return type(side.model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def _has_prompts(side: Side) -> bool:
    """Whether some row has real tokens in front that are not supervised."""
    assert side.batch is not None
    return bool((~side.places[:, 0] & side.places.any(1)).all()) and _causal(side)


def _learns_to_stop(side: Side) -> bool:
    ends = getattr(side.tokenizer, "eos_token_id", None)
    assert side.batch is not None
    return ends is None or bool((side.batch["targets"][side.places] == ends).any())


def _half(side: Side) -> bool:
    return side.model is not None and next(side.model.parameters()).dtype == torch.float16
