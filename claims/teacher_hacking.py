"""Teacher hacking: one fixed set of the teacher's texts against texts that are new at every visit.

Characters of tiny Shakespeare. The oracle is a Llama that was trained on them. The teacher is the oracle with an error
of its own: random cosines of its last states, added to its logits. It has to be that rough. Teachers that were trained
briefly and fine-tuned on the oracle's texts, as in the paper, err so smoothly at this size that students learned their
error from a few prompts, and no distance turned (two settings, one seed). The student gets a short training and a few
of the oracle's texts. All arms have the same start, teacher, prompts, steps, batches and learning rate, and differ in
how many texts of the teacher's each prompt has: one that comes back at every pass, five, or as many as there are
passes, so that every visit is a new text. The teacher does not change, so the last is online distillation from the
teacher, written beforehand.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from common import arguments, characters, digits, needed, summary, verdict, wins, write_result
from taid import model, train
from torch import Tensor, nn

from limbeck.data.prompts import prompt_batches
from limbeck.data.samples import Sample, samples_of
from limbeck.data.stream import lm_batches
from limbeck.methods.language_models.teacher_hacking import Config, Prompts, teacher_hacking

SETTING: dict[str, Any] = {
    "data": "shakespeare",
    "length": 32,
    "written": 16,
    "batch": 16,
    "oracle": {"layers": 3, "width": 64, "steps": 500, "lr": 3e-3},
    "error": {"features": 200, "frequency": 1.0, "strength": 1.0},
    "student": {"layers": 2, "width": 64, "steps": 60, "lr": 3e-3},
    "prompts": {"oracle": 128, "student": 64, "validation": 64},
    "fine_tuning": {"student": 30},
    "distillation": {"steps": 400, "lr": 3e-3, "look_every": 50},
}
PASSES = SETTING["distillation"]["steps"] * SETTING["batch"] // SETTING["prompts"]["student"]
ARMS = {"offline": 1, "offline_5": 5, "online": PASSES}  # texts per prompt


class Erring(nn.Module):
    """``head`` and, for states ... d, an error of standard deviation ``strength`` that differs for each seed.

    It is a sum of ``features`` random cosines of the state; the ``frequency`` says how fast it changes with it.
    """

    def __init__(self, head: nn.Linear, seed: int, features: int, frequency: float, strength: float) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.head, (classes, width) = head, head.weight.shape
        self.inner = torch.randn(width, features, generator=draw) * frequency
        self.phase = torch.rand(features, generator=draw) * 2 * math.pi
        self.outer = torch.randn(features, classes, generator=draw) * strength * math.sqrt(2 / features)

    def forward(self, states: Tensor) -> Tensor:
        """Logits ... v."""
        return self.head(states) + (states @ self.inner + self.phase).cos() @ self.outer


def erring(oracle: Any, seed: int) -> Any:
    """A copy of ``oracle`` with an error of its own."""
    teacher = deepcopy(oracle)
    teacher.lm_head = Erring(teacher.lm_head, seed, **SETTING["error"])
    return teacher


def prompts_for(text: str, tokenizer: Any, seed: int) -> Prompts:
    """Different prompts in three parts."""
    sizes = SETTING["prompts"]
    stream = prompt_batches([text], tokenizer, SETTING["length"], 64, seed, SETTING["written"])
    drawn = (row for i in range(sum(sizes.values()) // 32) for row in samples_of(stream.at(i)))
    found, one = list({tuple(row.prompt): Sample(row.prompt, []) for row in drawn}.values()), sizes["oracle"]
    two = one + sizes["student"]
    return Prompts(found[:one], found[one:two], found[two : two + sizes["validation"]])


def one(arm: str, models: tuple[nn.Module, ...], prompts: Prompts, seed: int) -> dict[str, Any]:
    student, teacher, oracle = deepcopy(models[0]), deepcopy(models[1]), models[2]
    cfg = Config(
        seed=seed,
        batch=SETTING["batch"],
        new_tokens=SETTING["written"],
        teacher_steps=0,
        student_steps=SETTING["fine_tuning"]["student"],
        responses=ARMS[arm],
        **SETTING["distillation"],
    )
    said, watch = teacher_hacking(student, teacher, oracle, prompts, cfg, ends=[])
    numbers = ("golden_least", "golden_least_step", "golden_last", "golden_ratio", "proxy_last", "teacher_gap")
    row = {"seed": seed, "method": arm, **{name: said[name] for name in numbers}}
    since = {name: "never" if said[name] is None else f"step {said[name]}" for name in ("hacked_since", "bent_since")}
    return row | since | {"looks": [[look.step, digits(look.proxy), digits(look.golden)] for look in watch.looks]}


def checks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    seeds = len({row["seed"] for row in rows})
    ratio = {arm: [row["golden_ratio"] for row in rows if row["method"] == arm] for arm in ARMS}
    better = wins(rows, "golden_last", "online", "offline")
    between = min(wins(rows, "golden_last", "online", "offline_5"), wins(rows, "golden_last", "offline_5", "offline"))
    return [
        {
            "claim": "offline, the distance to the oracle ends more than 25 % above its least",
            "holds": min(ratio["offline"]) > 1.25,
            "seen": f"{min(ratio['offline']):.2f} to {max(ratio['offline']):.2f} times",
        },
        {
            "claim": "... while the distance to the teacher falls or stalls",
            "holds": all(row["hacked_since"] != "never" for row in rows if row["method"] == "offline"),
            "seen": ", ".join(row["hacked_since"] for row in rows if row["method"] == "offline"),
        },
        {
            "claim": "online, it ends less than 25 % above its least",
            "holds": max(ratio["online"]) < 1.25,
            "seen": f"{min(ratio['online']):.2f} to {max(ratio['online']):.2f} times",
        },
        {
            "claim": "online ends nearer to the oracle than offline",
            "holds": better == seeds,
            "seen": f"{better} of {seeds} seeds",
        },
        {
            "claim": "more texts per prompt end nearer to the oracle, from 1 to 5 to a new one at every visit",
            "holds": between == seeds,
            "seen": f"{between} of {seeds} seeds",
        },
    ]


def main() -> None:
    args = arguments(__doc__)
    (path,) = needed(args.data, "shakespeare/input.txt")
    text = path.read_text()
    tokenizer = characters(text)

    def trained(name: str, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        lm = model(len(tokenizer), **SETTING[name])
        stream = lm_batches([text], tokenizer, SETTING["length"], SETTING["batch"], seed)
        train(lm, stream, SETTING[name]["steps"], SETTING[name]["lr"], seed)
        return lm

    oracle, rows = trained("oracle", 0), []
    for seed in range(args.seeds):
        models = trained("student", 10 + seed), erring(oracle, 20 + seed), oracle
        prompts = prompts_for(text, tokenizer, seed)
        for arm in ARMS:
            rows.append(one(arm, models, prompts, seed))
            print(rows[-1], flush=True)
    found = checks(rows)
    result = {"claim": "A fixed set of texts lets the student hack its teacher, new texts do not", "setting": SETTING}
    result |= {"rows": rows, "summary": summary(rows), "checks": found, "verdict": verdict(found)}
    write_result(args.out, "teacher_hacking", result)


if __name__ == "__main__":
    main()
