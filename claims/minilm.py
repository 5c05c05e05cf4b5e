"""MiniLM against attention alone, hidden states and no distillation, at equal steps.

WikiText-2 and a WordPiece tokenizer of its own; one BERT teacher of four layers, students of two layers and half the
width. Measured on held-out text: how far each student's relations are from the teacher's. The papers' differences on
tasks are about a point, which this size cannot resolve; a linear probe on SST-2 over frozen, averaged states only asks
whether distillation left more in the student than the same number of steps of masked language modelling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, needed, small_bert, summary, verdict, wins, wordpiece, write_result
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import BertForMaskedLM

from limbeck.analyses.measure import measure
from limbeck.core.fit import fit
from limbeck.core.signals import Signals
from limbeck.core.stage import Objective, Optim, Stage, distill_step, freeze
from limbeck.data.stream import Batches, lengths_mask, mlm_batches, pad, text_batches
from limbeck.methods.encoders.minilm import Config, minilm, relations
from limbeck.objectives.features import hidden
from limbeck.objectives.relations import relation
from limbeck.objectives.tokens import hard
from limbeck.objectives.weighted import weighted
from limbeck.sources.model import model_source
from limbeck.students.layers import smaller

SETTING = {
    "data": "wikitext2, sst2",
    "vocabulary": 2000,
    "length": 48,
    "batch": 32,
    "teacher": {"layers": 4, "width": 64, "heads": 4, "steps": 800, "lr": 2e-3},
    "student": {"layers": 2, "width": 32, "steps": 400, "lr": 2e-3},
    "probe": {"train": 2000},
}
METHODS = ("minilm", "minilm_v2", "attention_only", "hidden_mse", "mlm_only")


def train_teacher(texts: list[str], tokenizer: Any) -> BertForMaskedLM:
    size = SETTING["teacher"]
    torch.manual_seed(0)
    config = small_bert(tokenizer, size)
    model = BertForMaskedLM(config)
    masked(model, texts, tokenizer, size["steps"], size["lr"], 0)
    return freeze(model)


def masked(model: nn.Module, texts: list[str], tokenizer: Any, steps: int, lr: float, seed: int) -> None:
    """Masked language modelling."""
    says, goal = model_source(model), hard()
    stream = mlm_batches(texts, tokenizer, SETTING["length"], SETTING["batch"], seed)
    step = lambda batch, clock: goal(says(batch), Signals(), batch, clock)  # noqa: E731
    fit(Stage("mlm", step, {"model": model}, stream, steps, Optim(lr, "linear", 0.05), seed=seed))


def baseline(student: nn.Module, teacher: nn.Module, goal: Objective, stream: Batches, learns: dict, seed: int) -> None:
    """The same stage as MiniLM's with another objective."""
    says = [model_source(model, qkv=[-1], hidden=[-1]) for model in (student, teacher)]
    size = SETTING["student"]
    optim = Optim(size["lr"], "linear", 0.01, weight_decay=0.01)
    train = {"student": student, **learns}
    fit(Stage("baseline", distill_step(*says, goal), train, stream, size["steps"], optim, seed=seed))


def distil(method: str, teacher: BertForMaskedLM, texts: list[str], tokenizer: Any, seed: int) -> nn.Module:
    """A student's encoder after ``method``; every method gets the same first weights and the same batches of text."""
    size = SETTING["student"]
    torch.manual_seed(seed)
    student = smaller(teacher, size["layers"], size["width"])
    stream = text_batches(texts, tokenizer, SETTING["length"], SETTING["batch"], seed)
    encoder, taught = student.base_model, teacher.base_model
    if method == "mlm_only":
        masked(student, texts, tokenizer, size["steps"], size["lr"], seed)
    elif method == "attention_only":
        baseline(encoder, taught, weighted(attention=(1.0, relation("q", "k"))), stream, {}, seed)
    elif method == "hidden_mse":
        up = nn.Linear(size["width"], SETTING["teacher"]["width"])
        baseline(encoder, taught, hidden("mse", projection=up), stream, {"projection": up}, seed)
    else:
        version = 2 if method == "minilm_v2" else 1
        cfg = Config(
            version=version, relation_heads=8, steps=size["steps"], lr=size["lr"], assistant="never", seed=seed
        )
        minilm(encoder, taught, stream, cfg)
    return encoder.eval()


@torch.no_grad()
def states(model: nn.Module, texts: list[str], tokenizer: Any) -> np.ndarray:
    """Averaged last hidden states of each text: n d."""
    says, found = model_source(model, pooled="mean"), []
    for start in range(0, len(texts), 64):
        rows = tokenizer(texts[start : start + 64], truncation=True, max_length=SETTING["length"])["input_ids"]
        found.append(says({"ids": pad(rows), "mask": lengths_mask(rows)}).need("pooled"))
    return torch.cat(found).numpy()


def probe(model: nn.Module, tokenizer: Any, sets: list[tuple[list[str], list[int]]]) -> float:
    """Test accuracy of a logistic regression on frozen states."""
    (train, labels), (test, truth) = sets
    x, y = states(model, train, tokenizer), states(model, test, tokenizer)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    fitted = LogisticRegression(max_iter=1000).fit((x - mean) / scale, labels)
    return float(fitted.score((y - mean) / scale, truth))


def read_sst2(path: Path, most: int | None = None) -> tuple[list[str], list[int]]:
    rows = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()][:most]
    return [text for text, _ in rows], [int(label) for _, label in rows]


def checks(rows: list[dict[str, Any]], means: dict[str, Any]) -> list[dict[str, Any]]:
    seeds = len({row["seed"] for row in rows})
    value = {name: means[name]["values_kl"]["mean"] for name in METHODS}
    attention = {name: means[name]["attention_kl"]["mean"] for name in METHODS}
    probes, hidden_probes = (wins(rows, "sst2_probe", other, "minilm") for other in ("mlm_only", "hidden_mse"))
    others = ("hidden_mse", "mlm_only")
    gain, cost = value["attention_only"] / value["minilm"], attention["minilm"] / attention["attention_only"]
    return [
        {
            "claim": "value relations at least 3 times nearer than with attention alone",
            "holds": gain >= 3,
            "seen": f"{gain:.1f} x",
        },
        {"claim": "at no more than 15 % in attention", "holds": cost <= 1.15, "seen": f"ratio {cost:.2f}"},
        {
            "claim": "both relations nearer than after hidden-state MSE and after masked language modelling",
            "holds": all(value["minilm"] < value[x] and attention["minilm"] < attention[x] for x in others),
            "seen": ", ".join(f"{x}: values {value[x]:.3f}, attention {attention[x]:.3f}" for x in others),
        },
        {
            "claim": "the SST-2 probe is above masked language modelling at equal steps",
            "holds": probes == seeds,
            "seen": f"{probes} of {seeds} seeds",
        },
        {
            "claim": "... and above hidden-state MSE",
            "holds": hidden_probes == seeds,
            "seen": f"{hidden_probes} of {seeds} seeds",
        },
    ]


def main() -> None:
    args = arguments(__doc__)
    names = ("wikitext2/valid.txt", "wikitext2/test.txt", "sst2/train.tsv", "sst2/test.tsv")
    train, test, *sst2 = needed(args.data, *names)
    texts = [line for line in train.read_text(encoding="utf-8").splitlines() if len(line) > 40]
    fresh = [line for line in test.read_text(encoding="utf-8").splitlines() if len(line) > 40][:600]
    tokenizer = wordpiece(texts, SETTING["vocabulary"])
    sets = [read_sst2(sst2[0], SETTING["probe"]["train"]), read_sst2(sst2[1])]
    teacher = train_teacher(texts, tokenizer)
    held = text_batches(fresh, tokenizer, SETTING["length"], 32).take(15)
    rows = []
    for seed in range(args.seeds):
        for method in METHODS:
            student = distil(method, teacher, texts, tokenizer, seed)
            says = [model_source(model, qkv=[-1]) for model in (student, teacher.base_model)]
            found = measure(distill_step(*says, relations(1, 0)), held)
            row = {"attention_kl": found["attention"], "values_kl": found["values"]}
            rows.append({"seed": seed, "method": method, **row, "sst2_probe": probe(student, tokenizer, sets)})
            print(rows[-1], flush=True)
    means = summary(rows)
    seen = checks(rows, means)
    setting = SETTING | {"teacher_sst2_probe": round(probe(teacher.base_model, tokenizer, sets), 4)}
    result = {"claim": "relations of one layer are enough", "setting": setting, "rows": rows, "summary": means}
    write_result(args.out, "minilm", {**result, "checks": seen, "verdict": verdict(seen)})


if __name__ == "__main__":
    main()
