"""Who is loyal to whom: students of one Romanian masked LM, of another, of both, and of none.

Romanian sentences of UD RRT, one WordPiece vocabulary; two BERT teachers that differ by seed and by the half of the
text they were trained on; students of half their depth. All students start from the same random weights (layers of a
teacher would be loyalty by birth) and see the same batches. Loyalty is measured on masked tokens of held-out sentences.
The paper reports small and mixed differences on tasks; what is asked here is loyalty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from common import arguments, needed, small_bert, summary, verdict, wins, wordpiece, write_result
from torch import nn
from transformers import BertForMaskedLM

from limbeck.core.fit import fit
from limbeck.core.signals import Signals
from limbeck.core.stage import Optim, Stage, freeze
from limbeck.data.stream import Batches, mlm_batches
from limbeck.methods.multilingual.romanian_multi_teacher import Config, masked_loyalty, romanian_multi_teacher
from limbeck.objectives.tokens import hard
from limbeck.sources.model import model_source
from limbeck.students.layers import smaller

SETTING = {
    "data": "ud ro_rrt dev and test, one sentence in five held out",
    "vocabulary": 1500,
    "length": 48,
    "batch": 16,
    "teacher": {"layers": 4, "width": 64, "heads": 4, "steps": 500, "lr": 2e-3},
    "student": {"layers": 2, "steps": 300, "lr": 2e-3},
}
STUDENTS = {"of_one": (0,), "of_two": (1,), "of_both": (0, 1), "of_none": (0,)}  # the last: its weight is 0


def sentences(path: Path) -> list[str]:
    """The raw sentences of a CoNLL-U file."""
    start = "# text = "
    return [line[len(start) :] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(start)]


def stream(texts: list[str], tokenizer: Any, seed: int) -> Batches:
    return mlm_batches(texts, tokenizer, SETTING["length"], SETTING["batch"], seed)


def train_teacher(texts: list[str], tokenizer: Any, seed: int) -> BertForMaskedLM:
    size = SETTING["teacher"]
    torch.manual_seed(seed)
    model = BertForMaskedLM(small_bert(tokenizer, size))
    says, goal = model_source(model), hard()
    step = lambda batch, clock: goal(says(batch), Signals(), batch, clock)  # noqa: E731
    optim = Optim(size["lr"], "linear", 0.05)
    fit(Stage("teacher", step, {"teacher": model}, stream(texts, tokenizer, seed), size["steps"], optim, seed=seed))
    return freeze(model)


def distil(name: str, teachers: list[BertForMaskedLM], texts: list[str], tokenizer: Any, seed: int) -> nn.Module:
    size = SETTING["student"]
    torch.manual_seed(seed)
    student = smaller(teachers[0], size["layers"], SETTING["teacher"]["width"])
    weights = {"soft": 0.0, "cosine": 0.0} if name == "of_none" else {}
    cfg = Config(steps=size["steps"], lr=size["lr"], seed=seed, **weights)
    romanian_multi_teacher(student, [teachers[i] for i in STUDENTS[name]], stream(texts, tokenizer, seed), cfg)
    return student.eval()


def row(student: nn.Module, teachers: list[BertForMaskedLM], held: list) -> dict[str, float]:
    says = dict(zip(("one", "two"), map(model_source, teachers), strict=True))
    found = masked_loyalty(model_source(student), says, held)
    measured = {
        f"{m}_to_{name}": found[name][m] for m in ("label", "probability") for name in ("one", "two", "average")
    }
    return {**measured, "accuracy": found["student"]["accuracy"], "teacher_accuracy": found["average"]["accuracy"]}


def checks(rows: list[dict[str, Any]], means: dict[str, Any]) -> list[dict[str, Any]]:
    seeds = len({r["seed"] for r in rows})

    def told(metric: str, lower: str, higher: str) -> int:
        return wins(rows, metric, lower, higher)

    own = sum(r["probability_to_one"] > r["probability_to_two"] for r in rows if r["method"] == "of_one")
    own += sum(r["probability_to_two"] > r["probability_to_one"] for r in rows if r["method"] == "of_two")
    cross = told("probability_to_one", "of_two", "of_one") + told("probability_to_two", "of_one", "of_two")
    both = [told("probability_to_average", x, "of_both") for x in ("of_one", "of_two", "of_none")]
    none = [told("probability_to_average", "of_none", x) for x in ("of_one", "of_two", "of_both")]
    gap = means["of_both"]["probability_to_average"]["mean"] - means["of_none"]["probability_to_average"]["mean"]
    accuracies = [means[name]["accuracy"]["mean"] for name in STUDENTS]
    return [
        {
            "claim": "a student of one teacher is more loyal to it than to the other",
            "holds": own == 2 * seeds,
            "seen": f"{own} of {2 * seeds} students",
        },
        {
            "claim": "and more loyal to it than the other teacher's student is",
            "holds": cross == 2 * seeds,
            "seen": f"{cross} of {2 * seeds} pairs",
        },
        {
            "claim": "the student of both is the most loyal to the average",
            "holds": min(both) == seeds,
            "seen": f"above of_one, of_two, of_none in {both} of {seeds} seeds",
        },
        {
            "claim": "the student of none is the least loyal, by more than 0.03 in probability",
            "holds": min(none) == seeds and gap > 0.03,
            "seen": f"below the others in {none} of {seeds} seeds, by {gap:.3f}",
        },
        {
            "claim": "accuracy hardly differs (range of means at most 0.02)",
            "holds": max(accuracies) - min(accuracies) <= 0.02,
            "seen": f"{min(accuracies):.3f} to {max(accuracies):.3f}",
        },
    ]


def main() -> None:
    args = arguments(__doc__)
    files = needed(args.data, "ud/ro_rrt-ud-dev.conllu", "ud/ro_rrt-ud-test.conllu")
    texts = [text for path in files for text in sentences(path)]
    fresh = texts[::5]
    train = [text for number, text in enumerate(texts) if number % 5]
    tokenizer = wordpiece(train, SETTING["vocabulary"])
    rows = []
    for seed in range(args.seeds):
        teachers = [train_teacher(train[half::2], tokenizer, 10 * seed + half) for half in (0, 1)]
        held = mlm_batches(fresh, tokenizer, SETTING["length"], 32, seed=1000).take(len(fresh) // 32)
        for name in STUDENTS:
            student = distil(name, teachers, train, tokenizer, seed)
            rows.append({"seed": seed, "method": name, **row(student, teachers, held)})
            print(rows[-1], flush=True)
    means = summary(rows)
    seen = checks(rows, means)
    result = {"claim": "loyalty follows the teachers", "setting": SETTING, "rows": rows, "summary": means}
    write_result(args.out, "romanian_multi_teacher", {**result, "checks": seen, "verdict": verdict(seen)})


if __name__ == "__main__":
    main()
