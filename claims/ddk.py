"""DDK against the natural and the equal mixture, at equal steps.

Four domains of very different size: grade-school maths (GSM8K), WikiText-2, tiny Shakespeare and Romanian sentences
(UD). A Llama teacher that has read all four, students of two small layers from one start. Every mixture gets the same
start, steps, rows per batch, loss and learning rate: the better of two for the natural mixture, on text that is not
reported. The paper's headline is a student that is better on average because no domain is left behind; what is measured
is perplexity on test text of each domain, against the teacher's. Beside them stands DDK without its smoothing, the
paper's ablation.
"""

from __future__ import annotations

import json
import math
import statistics
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import arguments, needed, summary, verdict, wins, wordpiece, write_result
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck.analyses.perplexity import perplexities
from limbeck.core.batch import Batch
from limbeck.core.fit import fit
from limbeck.core.signals import Signals
from limbeck.core.stage import Optim, Stage, freeze
from limbeck.data.domains import natural, part_domains, text_domains
from limbeck.data.mixture import Blend, tempered
from limbeck.methods.language_models.ddk import MIXTURES, Config, Domain, ddk
from limbeck.objectives.tokens import hard
from limbeck.sources.model import model_source

SETTING: dict[str, Any] = {
    "domains": "gsm8k, wikitext2, shakespeare, ud ro_rrt",
    "vocabulary": 3000,
    "length": 64,
    "batch": 16,
    "teacher": {"layers": 4, "width": 96, "steps": 900, "lr": 3e-3},
    "student": {"layers": 2, "width": 48},
    "distillation": {"steps": 300, "interval": 20, "lr": 3e-3},
}
FILES = (
    "gsm8k/train.jsonl",
    "gsm8k/test.jsonl",
    "wikitext2/valid.txt",
    "wikitext2/test.txt",
    "shakespeare/input.txt",
    "ud/ro_rrt-ud-dev.conllu",
    "ud/ro_rrt-ud-test.conllu",
)


def maths(path: Path) -> list[str]:
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return [f"{row['question']} {row['answer']}" for row in rows]


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def sentences(path: Path) -> list[str]:
    return [line.removeprefix("# text = ") for line in path.read_text().splitlines() if line.startswith("# text = ")]


class Data:
    """What is learned from, and other text of each domain: ``dev`` for settings, ``test`` for what is reported."""

    def __init__(self, folder: Path) -> None:
        paths = needed(folder, *FILES)
        play = lines(paths[4].read_text())
        cut = int(0.9 * len(play))
        train = {"maths": maths(paths[0]), "wiki": lines(paths[2].read_text()), "play": play[:cut]}
        other = {"maths": maths(paths[1]), "wiki": lines(paths[3].read_text()), "play": play[cut:]}
        train["romanian"], other["romanian"] = sentences(paths[5]), sentences(paths[6])
        texts = (text for said in train.values() for text in said)
        self.tokenizer = wordpiece(texts, SETTING["vocabulary"])
        self.tokenizer.eos_token = "[SEP]"
        self.train, halves = train, {name: len(said) // 2 for name, said in other.items()}
        self.dev = self.held({name: said[: halves[name]] for name, said in other.items()})
        self.test = self.held({name: said[halves[name] :] for name, said in other.items()})

    def streams(self, texts: dict[str, list[str]], seed: int) -> dict[str, Any]:
        """Windows of each domain."""
        return text_domains(texts, self.tokenizer, SETTING["length"], SETTING["batch"], seed)

    def held(self, texts: dict[str, list[str]]) -> dict[str, list[Batch]]:
        """Some of them to measure on."""
        return {name: stream.take(12) for name, stream in self.streams(texts, 1).items()}

    def domains(self, seed: int) -> dict[str, Domain]:
        """What is learned from, and what the weights follow."""
        splits = part_domains(self.streams(self.train, seed), most=4)
        return {name: Domain(split.stream, split.batches) for name, split in splits.items()}


def model(layers: int, width: int, **_: Any) -> LlamaForCausalLM:
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    more = {"num_attention_heads": 4, "max_position_embeddings": 128, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(vocab_size=SETTING["vocabulary"], **sizes, **more))


def taught(data: Data) -> nn.Module:
    """The teacher: it has read the domains by the square root of their sizes."""
    torch.manual_seed(0)
    teacher = model(**SETTING["teacher"])
    says, goal = model_source(teacher), hard()
    streams = {name: domain.stream for name, domain in data.domains(99).items()}
    stream = Blend(streams, SETTING["batch"], tempered(natural(streams), 2.0))
    step = lambda batch, clock: goal(says(batch), Signals(), batch, clock)  # noqa: E731
    steps, lr = SETTING["teacher"]["steps"], SETTING["teacher"]["lr"]
    fit(Stage("teacher", step, {"teacher": teacher}, stream, steps, Optim(lr, "cosine", 0.05)))
    return freeze(teacher)


def one(
    mixture: Any, start: nn.Module, teacher: nn.Module, data: Data, held: dict[str, list[Batch]], seed: int, **more: Any
) -> dict[str, Any]:
    """Train a copy of ``start`` on ``mixture``; perplexities on ``held``, and how restless the shares were."""
    student = deepcopy(start)
    cfg = Config(mixture=mixture, seed=seed, batch=SETTING["batch"], **SETTING["distillation"] | more)
    _, weights = ddk(student, teacher, data.domains(seed), cfg)
    theirs = perplexities(model_source(teacher), held)
    ours = perplexities(model_source(student), held)
    ratios = [ours[name] / theirs[name] for name in held]
    shares = [[look[f"share.{name}"] for name in held] for look in weights.looks[1:]]
    moves = [sum(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in pairwise(shares)]
    found = {"seed": seed, "method": mixture, "worst_ratio": max(ratios), "mean_ratio": statistics.fmean(ratios)}
    found |= {"mean_perplexity": math.exp(statistics.fmean(math.log(value) for value in ours.values()))}
    found |= {f"perplexity_{name}": value for name, value in ours.items()}
    found |= {f"last_share_{name}": weights.stream.weights[name] for name in held}
    return found | {"least_share": min(map(min, shares)), "restlessness": statistics.fmean(moves)}


def checks(rows: list[dict[str, Any]], means: dict[str, Any]) -> list[dict[str, Any]]:
    seeds = len({row["seed"] for row in rows})

    def below(metric: str, other: str, what: str) -> dict[str, Any]:
        won = wins(rows, metric, "ddk", other)
        values = " against ".join(f"{means[name][metric]['mean']:.3f}" for name in ("ddk", other))
        return {"claim": what, "holds": won == seeds, "seen": f"{won} of {seeds} seeds; {values}"}

    worst = means["ddk"]["worst_ratio"]["mean"] / means["natural"]["worst_ratio"]["mean"]
    return [
        {
            "claim": "worst ratio to the teacher's perplexity less than 0.75 of the natural mixture's",
            "holds": worst < 0.75,
            "seen": f"{worst:.3f}",
        },
        below("mean_ratio", "natural", "mean ratio below the natural mixture's"),
        below("mean_ratio", "equal", "mean ratio below the equal mixture's"),
        below("worst_ratio", "equal", "worst ratio below the equal mixture's"),
        below("restlessness", "unsmoothed", "shares move less from look to look than without smoothing"),
    ]


def repetition(seed: int, teacher: nn.Module, data: Data) -> list[dict[str, Any]]:
    """All mixtures from one start."""
    torch.manual_seed(seed)
    start, rows = model(**SETTING["student"]), []
    for mixture in MIXTURES:
        rows.append(one(mixture, start, teacher, data, data.test, seed))
        print(rows[-1], flush=True)
    return rows


def conclude(rows: list[dict[str, Any]], teacher: nn.Module, data: Data, out: Path) -> None:
    means = summary(rows)
    found = checks(rows, means)
    sizes = natural({name: domain.stream for name, domain in data.domains(0).items()})
    setting = SETTING | {
        "natural_shares": {name: round(size / sum(sizes.values()), 3) for name, size in sizes.items()},
        "teacher_perplexity": {n: round(v, 2) for n, v in perplexities(model_source(teacher), data.test).items()},
    }
    result = {"claim": "weights that follow the student leave no domain behind", "setting": setting, "rows": rows}
    write_result(out, "ddk", {**result, "summary": means, "checks": found, "verdict": verdict(found)})


def main() -> None:
    args = arguments(__doc__)
    data = Data(args.data)
    teacher = taught(data)
    rows = [row for seed in range(args.seeds) for row in repetition(seed, teacher, data)]
    conclude(rows, teacher, data, args.out)


if __name__ == "__main__":
    main()
