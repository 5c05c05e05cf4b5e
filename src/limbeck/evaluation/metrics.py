"""Metrics of the MetaICL protocol (arXiv 2110.15943) and exact match; space around answers does not count."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from limbeck.core.check import require


def accuracy(predictions: Sequence[str], gold: Sequence[str]) -> float:
    """Share of predictions that equal the gold answer."""
    pairs = _pairs(predictions, gold)
    return sum(p == g for p, g in pairs) / len(pairs)


def exact_match(predictions: Sequence[str], gold: Sequence[str]) -> float:
    """Share of written answers that equal the gold answer after runs of space are made one."""
    return accuracy([" ".join(p.split()) for p in predictions], [" ".join(g.split()) for g in gold])


def macro_f1(predictions: Sequence[str], gold: Sequence[str]) -> float:
    """F1 per label that occurs in ``gold``, averaged.

    A gold label that is never predicted counts 0; a label that is only predicted adds no term (scikit-learn's default
    label set would add one).
    """
    pairs = _pairs(predictions, gold)
    labels = sorted({g for _, g in pairs})
    return float(np.mean([_f1(pairs, label) for label in labels]))


def task_score(kind: str, predictions: Sequence[str], gold: Sequence[str]) -> float:
    """A task's score as MetaICL has it: macro-F1 for classification, accuracy otherwise."""
    return (macro_f1 if kind == "classification" else accuracy)(predictions, gold)


def sentence_bleu(text: str, reference: str, order: int = 4) -> float:
    """BLEU of one sentence, from 0 to 1: matched n-grams of up to ``order`` words, short texts punished.

    Counts beyond single words are raised by one (Lin and Och, 2004, ORANGE), so that of two texts without a four-gram
    in common one can still be nearer. Words are what space parts.
    """
    words, wanted = text.split(), reference.split()
    if not words or not wanted:
        return 0.0
    logs = 0.0
    for n in range(1, order + 1):
        ours, theirs = (Counter(zip(*(w[i:] for i in range(n)), strict=False)) for w in (words, wanted))
        raised = int(n > 1)
        matched, count = (ours & theirs).total() + raised, ours.total() + raised
        if not matched:
            return 0.0
        logs += math.log(matched / count)
    return math.exp(logs / order + min(0.0, 1 - len(wanted) / len(words)))


class SettingScore(NamedTuple):
    """A setting's score: ``average`` over tasks and seeds, ``worst``: mean over tasks of each task's worst seed."""

    average: float
    worst: float


def setting_score(scores: Sequence[Sequence[float]]) -> SettingScore:
    """From ``scores`` (tasks x seeds, every task with the same seeds)."""
    require(len(scores) and all(len(task) for task in scores), "a setting needs at least one task with one seed")
    require(
        len({len(task) for task in scores}) == 1, f"tasks have different numbers of seeds: {[len(t) for t in scores]}"
    )
    table = np.asarray(scores, dtype=np.float64)
    return SettingScore(float(table.mean(1).mean()), float(table.min(1).mean()))


def _pairs(predictions: Sequence[str], gold: Sequence[str]) -> list[tuple[str, str]]:
    require(len(predictions) == len(gold), f"there are {len(predictions)} predictions, but {len(gold)} gold answers")
    require(gold, "there is nothing to compare; give at least one answer")
    return [(p.strip(), g.strip()) for p, g in zip(predictions, gold, strict=True)]


def _f1(pairs: list[tuple[str, str]], label: str) -> float:
    both = sum(p == g == label for p, g in pairs)
    either = sum((p == label) + (g == label) for p, g in pairs)
    return 2 * both / either
