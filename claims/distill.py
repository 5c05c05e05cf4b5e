"""Plain distillation against the same student without a teacher, with all of the data and with a twentieth of it.

WikiText-2's validation text in 1,000 word pieces; a Llama teacher that read all of it, students of one layer from one
start. Both objectives get the same batches, steps and start, and each its learning rate out of the same two, chosen on
text that is not reported. Hinton et al. 2015, section 4: soft targets let a student generalise from a small part of the
data, where hard targets overfit. Measured on the second half of the test text.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from common import arguments, needed, summary, verdict, wins, wordpiece, write_result
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck.analyses.agreement import agreement, difference
from limbeck.core.fit import fit
from limbeck.core.signals import Signals
from limbeck.core.stage import Optim, Stage, freeze
from limbeck.data.stream import Batches, lm_batches
from limbeck.methods.language_models.distill import Config, distill
from limbeck.objectives.tokens import hard
from limbeck.sources.model import model_source

SETTING: dict[str, Any] = {
    "data": "wikitext2",
    "vocabulary": 1000,
    "length": 64,
    "batch": 16,
    "teacher": {"layers": 4, "width": 64, "steps": 600, "lr": 3e-3},
    "student": {"layers": 1, "width": 32},
    "steps": 250,
    "rates": [3e-3, 1e-2],
    "share": 0.05,
}
PARTS = ("all", "few")
METHODS = ("forward_kl", "sft")


def model(layers: int, width: int, **_: Any) -> LlamaForCausalLM:
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    more = {"num_attention_heads": 4, "max_position_embeddings": 128, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(vocab_size=SETTING["vocabulary"], **sizes, **more))


def teach(lm: nn.Module, stream: Batches, steps: int, lr: float, **_: Any) -> None:
    says, goal = model_source(lm), hard()
    step = lambda batch, clock: goal(says(batch), Signals(), batch, clock)  # noqa: E731
    fit(Stage("teacher", step, {"lm": lm}, stream, steps, Optim(lr, "cosine", 0.05)))


class Data:
    """The streams to learn from and the batches to measure on."""

    def __init__(self, train: str, test: str) -> None:
        self.train, half = train, len(test) // 2
        self.tokenizer = wordpiece([train], SETTING["vocabulary"])
        self.tuning, self.test = (self.windows(text, 1).take(20) for text in (test[:half], test[half:]))

    def windows(self, text: str, seed: int) -> Batches:
        """Windows of the text, in an order of their own for each seed."""
        return lm_batches([text], self.tokenizer, SETTING["length"], SETTING["batch"], seed)

    def stream(self, part: str, seed: int) -> Batches:
        """All of the text, or the share of it that begins where the seed says."""
        size = int(len(self.train) * SETTING["share"])
        begin = (seed * 7 * size) % (len(self.train) - size)
        return self.windows(self.train if part == "all" else self.train[begin : begin + size], seed)


def taught(method: str, lr: float, part: str, seed: int, teacher: nn.Module, data: Data) -> nn.Module:
    torch.manual_seed(seed)
    student = model(**SETTING["student"])
    cfg = Config(objective=method, steps=SETTING["steps"], lr=lr, warmup=0.05, seed=seed)  # type: ignore[arg-type]
    distill(student, teacher, data.stream(part, seed), cfg)
    return student


def tuned(teacher: nn.Module, data: Data) -> dict[tuple[str, str], float]:
    """The better of the rates for each method and part, on text that is not reported, with a seed of its own."""
    found = {}
    for part in PARTS:
        for method in METHODS:
            losses = {}
            for lr in SETTING["rates"]:
                student = taught(method, lr, part, 100, teacher, data)
                losses[lr] = agreement(model_source(student), None, data.tuning).mean("nll")
            found[method, part] = min(losses, key=lambda lr: losses[lr])
            print("tuned", part, method, losses, flush=True)
    return found


def checks(rows: list[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    found = []
    for part in PARTS:
        mine = [row for row in rows if row["part"] == part]
        for metric, words in (("nll", "predicts unseen text better"), ("kl", "is nearer to the teacher")):
            won = wins(mine, metric, f"forward_kl, {part}", f"sft, {part}")
            found.append(
                {
                    "claim": f"with {part} of the data, the distilled student {words}",
                    "holds": won == seeds,
                    "seen": f"{won} of {seeds} seeds",
                }
            )
    return found


def main() -> None:
    args = arguments(__doc__)
    train, test = (path.read_text() for path in needed(args.data, "wikitext2/valid.txt", "wikitext2/test.txt"))
    data = Data(train, test)
    torch.manual_seed(0)
    teacher = model(**SETTING["teacher"])
    teach(teacher, data.stream("all", 0), **SETTING["teacher"])
    freeze(teacher)
    says = model_source(teacher)
    rates = tuned(teacher, data)
    rows = []
    for seed in range(args.seeds):
        for part in PARTS:
            seen = {}
            for method in METHODS:
                student = taught(method, rates[method, part], part, seed, teacher, data)
                seen[method] = agreement(model_source(student), says, data.test)
                means = {name: seen[method].mean(name) for name in seen[method].sums}
                rows.append({"seed": seed, "method": f"{method}, {part}", "part": part, **means})
                print(rows[-1], flush=True)
            gap = difference(seen["forward_kl"], seen["sft"], "nll")
            rows[-2]["nll_minus_sft"], rows[-2]["low"], rows[-2]["high"] = gap
    means, found = summary(rows), checks(rows, args.seeds)
    setting = deepcopy(SETTING) | {"teacher_nll": round(agreement(says, None, data.test).mean("nll"), 4)}
    setting["rates chosen"] = {f"{method}, {part}": lr for (method, part), lr in rates.items()}
    result = {"claim": "a teacher is worth more than its data alone", "setting": setting, "rows": rows}
    write_result(args.out, "distill", {**result, "summary": means, "checks": found, "verdict": verdict(found)})


if __name__ == "__main__":
    main()
