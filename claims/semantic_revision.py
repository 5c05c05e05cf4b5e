"""Correction and re-generation (SCRG) against plain on-policy text, with the loss held equal; and the whole method.

Characters of tiny Shakespeare, one Llama teacher, a student of one layer that starts from a short fine-tuning of its
own. Prompts are 24 characters, texts 24 more. Every arm gets the same start, prompts, steps, batches and learning rate.
Half of the batches are the data's text, half the student's: as it wrote it, corrected once, or, because a correction
writes about half of a text again, as it wrote it but in three quarters of the batches. All are trained by forward KL;
the last arm adds the other two losses of the paper.

Two things are asked. Is a corrected text better by the teacher's own measure, and no poorer in words? And does a
student that was trained on corrected texts write texts that the teacher finds likelier?
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from common import arguments, characters, needed, summary, verdict, wins, write_result
from taid import model, train
from torch import nn

from limbeck.analyses.measure import measure
from limbeck.core.batch import Batch
from limbeck.core.signals import Signals
from limbeck.core.stage import distill_step, freeze
from limbeck.core.terms import Clock
from limbeck.data.prompts import prompt_batches
from limbeck.data.revise import Corrected
from limbeck.data.samples import Sample, batch_of, samples_of
from limbeck.data.stream import Batches, lm_batches
from limbeck.data.writer import Sampling, Writer
from limbeck.methods.language_models.on_policy import agreement
from limbeck.methods.language_models.semantic_revision import Config, semantic_revision
from limbeck.objectives.tokens import hard
from limbeck.sources.model import model_source

SETTING = {
    "data": "shakespeare",
    "length": 48,
    "written": 24,
    "batch": 16,
    "held_out": {"batches": 6, "rows": 64},
    "teacher": {"layers": 3, "width": 64, "steps": 500, "lr": 3e-3},
    "student": {"layers": 1, "width": 48, "steps": 100, "lr": 3e-3},
    "distillation": {"steps": 120, "lr": 2e-3},
}
PLAIN = {"clip": False, "span": 0.0, "hard": 0.0}
ARMS = {
    "data_only": {**PLAIN, "share": 0.0, "corrections": 0},
    "on_policy": {**PLAIN, "share": 0.5, "corrections": 0},
    "on_policy_more": {**PLAIN, "share": 0.75, "corrections": 0},
    "scrg": {**PLAIN, "share": 0.5, "corrections": 1},
    "semantic_revision": {"share": 0.5, "corrections": 1},
}


def distinct(rows: list[Sample]) -> float:
    """Share of different pairs of neighbouring tokens among all pairs."""
    pairs = [pair for row in rows for pair in zip(row.completion, row.completion[1:], strict=False)]
    return len(set(pairs)) / max(1, len(pairs))


def nll(reader: nn.Module, rows: list[Sample]) -> float:
    """Negative log-likelihood per token of what was written."""
    says, goal = model_source(reader), hard()
    batches = [batch_of(rows[i : i + 64]) for i in range(0, len(rows), 64)]
    return measure(lambda b, _: goal(says(b), Signals(), b, Clock(0, 1)), batches)["hard"]


def texts(student: nn.Module, held: list[Batch], seed: int) -> list[Sample]:
    """What the student writes after the held-out prompts."""
    write = Writer(student, Sampling(SETTING["written"]), ends=[])
    return [row for i, batch in enumerate(held) for row in write(samples_of(batch), 1000 * seed + i)]


def corrections(student: nn.Module, teacher: nn.Module, held: list[Batch], seed: int) -> dict[str, Any]:
    """Text before any training, as it was written and corrected."""
    write = Writer(student, Sampling(SETTING["written"]), ends=[])
    raw = texts(student, held, seed)
    fixed = Corrected(model_source(student), model_source(teacher), write)(raw, seed)
    found = {"raw_nll": nll(teacher, raw), "corrected_nll": nll(teacher, fixed)}
    return found | {"raw_distinct": distinct(raw), "corrected_distinct": distinct(fixed)}


def one(arm: str, start: nn.Module, teacher: nn.Module, stream: Batches, tokenizer: Any, held: list, seed: int) -> dict:
    student = deepcopy(start)
    sizes = {"new_tokens": SETTING["written"], "batch": SETTING["batch"], **SETTING["distillation"]}
    cfg = Config(seed=seed, sft_steps=0, **sizes, **ARMS[arm])
    semantic_revision(student, teacher, stream, tokenizer, cfg, ends=[])
    found = measure(distill_step(model_source(student), model_source(teacher), agreement()), held)
    own = texts(student, held, seed)
    found |= {"own_text_nll": nll(teacher, own), "own_text_distinct": distinct(own)}
    return {"seed": seed, "method": arm, **found}


def checks(rows: list[dict[str, Any]], before: list[dict[str, Any]], means: dict[str, Any]) -> list[dict[str, Any]]:
    seeds = len(before)
    gains = [row["raw_nll"] - row["corrected_nll"] for row in before]
    words = [row["corrected_distinct"] / row["raw_distinct"] for row in before]
    own = wins(rows, "own_text_nll", "scrg", "on_policy")
    more = wins(rows, "own_text_nll", "scrg", "on_policy_more")
    whole = [wins(rows, metric, "semantic_revision", "on_policy") for metric in ("own_text_nll", "forward_kl")]
    ratio = means["scrg"]["forward_kl"]["mean"] / means["on_policy"]["forward_kl"]["mean"]
    return [
        {
            "claim": "a corrected text is at least 0.1 nat per token likelier to the teacher than it was",
            "holds": min(gains) > 0.1,
            "seen": f"{min(gains):.3f} to {max(gains):.3f} nat",
        },
        {
            "claim": "corrected texts lose at most 5 % of their distinct pairs of tokens",
            "holds": min(words) > 0.95,
            "seen": f"ratio {min(words):.3f} to {max(words):.3f}",
        },
        {
            "claim": "trained with corrections, the student's own text is likelier to the teacher than trained without",
            "holds": own == seeds,
            "seen": f"{own} of {seeds} seeds",
        },
        {
            "claim": "... also where the arm without gets three batches for two to write",
            "holds": more == seeds,
            "seen": f"{more} of {seeds} seeds",
        },
        {
            "claim": "the whole method is ahead of plain on-policy text, in its own text and on held-out text",
            "holds": whole == [seeds, seeds],
            "seen": f"{whole[0]} and {whole[1]} of {seeds} seeds",
        },
        {
            "claim": "with corrections, held-out forward KL is not given up (within 2 %)",
            "holds": ratio <= 1.02,
            "seen": f"ratio of means {ratio:.3f}",
        },
    ]


def main() -> None:
    args = arguments(__doc__)
    (path,) = needed(args.data, "shakespeare/input.txt")
    text = path.read_text()
    tokenizer, cut = characters(text), int(0.9 * len(text))
    length, batch, written = SETTING["length"], SETTING["batch"], SETTING["written"]
    size = SETTING["held_out"]
    held = prompt_batches([text[cut:]], tokenizer, length, size["rows"], 1, written).take(size["batches"])
    torch.manual_seed(0)
    teacher = model(len(tokenizer), **SETTING["teacher"])
    running = lm_batches([text[:cut]], tokenizer, length, batch)
    train(teacher, running, SETTING["teacher"]["steps"], SETTING["teacher"]["lr"], 0)
    freeze(teacher)
    rows, before = [], []
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        start = model(len(tokenizer), **SETTING["student"])
        own = prompt_batches([text[:cut]], tokenizer, length, batch, 100 + seed, written)
        train(start, own, SETTING["student"]["steps"], SETTING["student"]["lr"], seed)
        before.append({"seed": seed, "method": "before", **corrections(start, teacher, held, seed)})
        print(before[-1], flush=True)
        for arm in ARMS:
            stream = prompt_batches([text[:cut]], tokenizer, length, batch, seed, written)
            rows.append(one(arm, start, teacher, stream, tokenizer, held, seed))
            print(rows[-1], flush=True)
    means = summary(rows)
    found = checks(rows, before, means)
    result = {
        "claim": "Correcting the student's text beats plain on-policy text",
        "setting": SETTING | {"teacher_nll": round(nll(teacher, [row for b in held for row in samples_of(b)]), 4)},
        "rows": [*before, *rows],
    }
    texts_before = summary(before)
    write_result(
        args.out,
        "semantic_revision",
        {**result, "summary": means, "before": texts_before, "checks": found, "verdict": verdict(found)},
    )


if __name__ == "__main__":
    main()
