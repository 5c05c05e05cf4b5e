"""A student that has read before it is distilled against one that has not, and both against fine-tuning on the labels.

The data and the teacher of ``distiller.py``: sixty intents of CLINC150. Students of two layers start at random; they
read and are distilled on the same 6,000 sentences without labels (the paper's test of compounding), and are fine-tuned
on ten labelled ones of each intent. Every stage has the same steps and learning rate, which was not tuned for any arm;
``D longer`` is distilled for as many steps as ``PD`` reads and is distilled, so that both have one budget.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from common import arguments, needed, summary, verdict, wins, write_result
from distiller import SETTING as TASK
from distiller import Data, score, train_teacher
from torch import nn

from limbeck.data.stream import mlm_batches
from limbeck.methods.encoders.well_read_students import Config, well_read_students
from limbeck.students.layers import smaller

SETTING: dict[str, Any] = {
    "data": "clinc150",
    "task": {name: TASK[name] for name in ("intents", "vocabulary", "length", "batch")},
    "teacher": TASK["teacher"],
    "student": {"layers": 2, "width": 48},
    "labelled": 600,
    "steps": 300,
    "lr": 2e-3,
}
ARMS: dict[str, tuple[str, ...]] = {
    "FT": ("finetune",),
    "PF": ("pretrain", "finetune"),
    "D": ("distil",),
    "D longer": ("distil",),
    "PD": ("pretrain", "distil"),
}


def taught(arm: str, seed: int, teacher: nn.Module, data: Data) -> nn.Module:
    """A student after the stages of the arm."""
    size, steps = SETTING["student"], SETTING["steps"]
    torch.manual_seed(seed)
    student = smaller(teacher, size["layers"], size["width"])
    rows = data.rows["train"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    text = mlm_batches([row.text for row in rows], data.tokenizer, TASK["length"], TASK["batch"], seed)
    transfer = data.stream([row._replace(label=None) for row in rows], seed)
    labelled = data.stream([rows[i] for i in order[: SETTING["labelled"]]], seed)
    stages: Any = ARMS[arm]
    cfg = Config(stages=stages, pretrain_steps=steps, steps=steps, finetune_steps=steps, lr=SETTING["lr"], seed=seed)
    cfg = replace(cfg, steps=2 * steps) if arm == "D longer" else cfg
    well_read_students(student, teacher, text, transfer, labelled, cfg)
    return student.eval()


def checks(rows: list[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    pairs = {
        "reading first helps distillation": ("D", "PD"),
        "... also where the other is distilled for as many steps in all": ("D longer", "PD"),
        "reading first helps fine-tuning": ("FT", "PF"),
        "reading and distillation are better than reading and fine-tuning": ("PF", "PD"),
        "distillation alone is better than fine-tuning alone": ("FT", "D"),
    }
    won = {claim: wins(rows, "accuracy", *pair) for claim, pair in pairs.items()}
    return [{"claim": claim, "holds": n == seeds, "seen": f"{n} of {seeds} seeds"} for claim, n in won.items()]


def main() -> None:
    args = arguments(__doc__)
    (path,) = needed(args.data, "clinc150/data_full.json")
    data = Data(json.loads(path.read_text(encoding="utf-8")))
    teacher, rows = train_teacher(data), []
    for seed in range(args.seeds):
        for arm in ARMS:
            rows.append({"seed": seed, "method": arm, **score(taught(arm, seed, teacher, data), teacher, data.test)})
            print(rows[-1], flush=True)
    found = checks(rows, args.seeds)
    setting = SETTING | {"teacher_accuracy": round(score(teacher, teacher, data.test)["accuracy"], 4)}
    result = {"claim": "reading and distilling add up", "setting": setting, "rows": rows, "summary": summary(rows)}
    write_result(args.out, "well_read_students", {**result, "checks": found, "verdict": verdict(found)})


if __name__ == "__main__":
    main()
