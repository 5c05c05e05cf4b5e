"""Further pre-training with and without self-distillation, and none, on small sets of utterances.

A BERT of two layers that has read the utterances of 130 intents of CLINC150. The task: the other 20 intents, of each
ten utterances, drawn anew for each seed; they are both what is read further and what is learned from. Compared at equal
steps of further pre-training: S steps, 2 S steps, and S steps for the teacher and S for the student. Everything is
fine-tuned alike, from the same new head, and judged on the intents' 600 test utterances. Settings come from seed 100,
which is not reported.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from common import SPECIAL, arguments, needed, summary, verdict, wins, wordpiece, write_result
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from limbeck.data.labelled import Row, labelled_batches
from limbeck.data.stream import mlm_batches
from limbeck.methods.encoders.classification import fine_tune
from limbeck.methods.encoders.further_pretraining import (
    Config,
    accuracy,
    further_pretraining,
    masked_measures,
    pretrain,
)
from limbeck.methods.encoders.further_tasks import Task, in_turn, of_texts
from limbeck.models.classifiers import headed
from limbeck.sources.model import model_source

SETTING: dict[str, Any] = {
    "data": "clinc150",
    "vocabulary": 2000,
    "length": 16,
    "model": {"layers": 2, "width": 64, "steps": 600, "lr": 2e-3},
    "intents": 20,
    "utterances": 10,
    "further": {"steps": 150, "lr": 1e-3},
    "fine-tuning": {"steps": 250, "lr": 2e-3},
}
CPU = torch.device("cpu")


def general(texts: list[str], tokenizer: Any) -> nn.Module:
    """The model before it sees the task."""
    size = SETTING["model"]
    torch.manual_seed(0)
    sizes = {"hidden_size": size["width"], "intermediate_size": 4 * size["width"], "num_attention_heads": 4}
    sizes |= {"num_hidden_layers": size["layers"], "max_position_embeddings": 64, "type_vocab_size": 1}
    silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForMaskedLM(
        BertConfig(vocab_size=len(tokenizer), pad_token_id=SPECIAL.index("[PAD]"), **sizes, **silent)
    )
    stream = mlm_batches(texts, tokenizer, SETTING["length"], 32, 0)
    pretrain("general", model, stream, size["steps"], of_texts(), Config(lr=size["lr"]))
    return model


def intents(utterances: dict[str, list[list[str]]]) -> list[str]:
    """Those of the task, the same for all seeds."""
    every = sorted({label for _, label in utterances["train"]})
    return sorted(every[i] for i in np.random.default_rng(0).permutation(len(every))[: SETTING["intents"]])


def task_of(utterances: dict[str, list[list[str]]], model: nn.Module, tokenizer: Any, seed: int) -> Task:
    """Some utterances of each intent of the task, and all of theirs that are for tests."""
    rng, length = np.random.default_rng(seed), SETTING["length"]
    names = intents(utterances)
    rows = []
    for name in names:
        mine = [text for text, label in utterances["train"] if label == name]
        rows += [Row(str(text), label=name) for text in rng.choice(mine, SETTING["utterances"], replace=False)]
    test = [Row(text, label=label) for text, label in utterances["test"] if label in names]
    texts, unseen = [row.text for row in rows], [row.text for row in test]
    return Task(
        model,
        tokenizer,
        of_texts(),
        mlm_batches(texts, tokenizer, length, 32, seed),
        lambda: labelled_batches(rows, names, tokenizer, length, 32, seed),
        in_turn(labelled_batches(test, names, tokenizer, length, 1)),
        mlm_batches(unseen, tokenizer, length, 50, 0).take(12),
        lambda body: headed(body.base_model, names),
        model_source,
        {"train": len(rows), "test": len(test)},
    )


def arms(task: Task, seed: int) -> dict[str, Any]:
    """The model after nothing, S steps, 2 S steps, and S of a teacher and S of its student."""
    cfg = Config(seed=seed, **SETTING["further"])
    student, twice = deepcopy(task.model), deepcopy(task.model)
    further, _ = further_pretraining(student, task.masked, task.voices, cfg)
    again = mlm_batches_of(task, seed)
    pretrain("twice", twice, again, 2 * cfg.steps, task.voices, cfg)
    return {"initial": task.model, "further": further, "further, 2 S": twice, "self-distilled": student}


def mlm_batches_of(task: Task, seed: int) -> Any:
    """The stream of masked texts from its beginning."""
    stream = deepcopy(task.masked)
    stream.position = 0
    return stream


def measured(name: str, models: dict[str, Any], task: Task, seed: int) -> dict[str, Any]:
    found = masked_measures(models[name], models, task, CPU)
    seen = masked_measures(models[name], models, task._replace(unseen=mlm_batches_of(task, seed).take(6)), CPU)
    torch.manual_seed(seed)
    classifier, cfg = task.classifier(models[name]), Config(seed=seed, lr=SETTING["fine-tuning"]["lr"])
    fine_tune("finetune", classifier, task.labelled(), SETTING["fine-tuning"]["steps"], replace(cfg, warmup=0.05))
    gap = found["masked"] - seen["masked"]
    row = {"seed": seed, "method": name, "accuracy": accuracy(classifier, task, CPU)}
    return row | {"masked_loss": found["masked"], "gap": gap, "moved": found["moved"], "feature": found["feature"]}


def checks(rows: list[dict[str, Any]], means: dict[str, Any]) -> list[dict[str, Any]]:
    seeds, value = len({row["seed"] for row in rows}), {name: means[name]["accuracy"]["mean"] for name in means}
    mine = value["self-distilled"]
    found = [
        {
            "claim": f"accuracy above {words}",
            "holds": mine > value[other],
            "seen": f"{mine:.4f} against {value[other]:.4f}, {wins(rows, 'accuracy', other, 'self-distilled')} of "
            f"{seeds} seeds",
        }
        for other, words in (
            ("initial", "no further pre-training"),
            ("further", "further pre-training of S steps"),
            ("further, 2 S", "further pre-training of as many steps in all"),
        )
    ]
    for metric, other, words in (
        ("moved", "further", "the weights stay nearer to the first ones than the teacher's"),
        ("gap", "further, 2 S", "unseen text is less worse than text that was read, at equal steps"),
        ("feature", "further, 2 S", "features are nearer to the teacher's than those of 2 S steps"),
    ):
        won = wins(rows, metric, "self-distilled", other)
        values = [means[name][metric]["mean"] for name in ("self-distilled", other)]
        seen = f"{won} of {seeds} seeds, {values[0]:.3g} against {values[1]:.3g}"
        found.append({"claim": words, "holds": won == seeds, "seen": seen})
    return found


def main() -> None:
    args = arguments(__doc__)
    (path,) = needed(args.data, "clinc150/data_full.json")
    utterances = json.loads(path.read_text(encoding="utf-8"))
    mine = set(intents(utterances))
    texts = [text for text, label in utterances["train"] if label not in mine]
    tokenizer = wordpiece(texts, SETTING["vocabulary"])
    model, rows = general(texts, tokenizer), []
    for seed in range(args.seeds):
        task = task_of(utterances, deepcopy(model), tokenizer, seed)
        models = arms(task, seed)
        rows += [measured(name, models, task, seed) for name in models]
        print(*rows[-4:], sep="\n", flush=True)
    means = summary(rows)
    found = checks(rows, means)
    result = {"claim": "a further pre-trained model is better as a teacher than as a starting point"}
    result |= {"setting": SETTING, "rows": rows, "summary": means, "checks": found, "verdict": verdict(found)}
    write_result(args.out, "further_pretraining", result)


if __name__ == "__main__":
    main()
