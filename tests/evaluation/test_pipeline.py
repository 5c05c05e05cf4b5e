"""From files of tasks to a score."""

import json

import pytest
import torch

from limbeck.data.tasks import demonstrations, read_tasks
from limbeck.data.templates import LAYOUTS
from limbeck.evaluation.metrics import task_score
from limbeck.evaluation.score import best, score_options

SIGNS = {character: number for number, character in enumerate("\n =abcdefghijklmnopqrstuvwxyz0123456789", 3)}


def tokenizer(text, add_special_tokens=False):
    return {"input_ids": [SIGNS[character] for character in text]}


@pytest.fixture
def task(tmp_path):
    """Twelve rows per split: a letter is to be called low or high."""
    rows = [
        {"task": "half", "input": c, "output": "low" if c < "g" else "high", "options": ["low", "high"]}
        for c in "abcdefghijkl"
    ]
    for split in ("train", "test"):
        (tmp_path / f"half_16_13_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_tasks(tmp_path, seed=13)[0]


@pytest.mark.parametrize("name", ["mend", "metaicl", "space"])
def test_tasks_in_scores_out(model, task, name):
    form, lm = LAYOUTS[name], model("llama")
    prefix = torch.tensor(form.demos(tokenizer, demonstrations(task, 4, seed=13), budget=40))
    items = [form.options(tokenizer, row.input, row.options) for row in task.test]
    scores = score_options(lm, prefix, items)
    predictions = [row.options[best(score)] for row, score in zip(task.test, scores, strict=True)]
    value = task_score(task.kind, predictions, [row.output for row in task.test])
    assert task.kind == "classification"
    assert 0 <= value <= 1
    rows = [prefix.tolist() + prompt + scored for prompt, scored in items[0]]  # by hand, for the first row
    with torch.no_grad():
        logp = [lm(torch.tensor([row])).logits[0].log_softmax(-1) for row in rows]
    for got, row, part, (_, scored) in zip(scores[0], rows, logp, items[0], strict=True):
        first = len(row) - len(scored)
        want = torch.stack([part[i - 1, row[i]] for i in range(first, len(row))]).mean()
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
