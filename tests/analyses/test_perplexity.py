"""Perplexities by domain."""

import math

import pytest
import tiny_llms
import torch

from limbeck.analyses.perplexity import DomainPerplexity, perplexities
from limbeck.core.batch import next_token_batch
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.sources.model import model_source


def batch(rows: list[list[int]]):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return next_token_batch(ids, mask)


def test_the_mean_is_over_tokens_not_over_rows_or_batches():
    model = tiny_llms.build("gpt2")
    held = [batch([[3, 4, 5, 6, 7, 8], [3, 4]]), batch([[9, 10, 11]])]
    nll, count = 0.0, 0
    for one in held:
        values = model(input_ids=one["ids"], attention_mask=one["mask"].long()).logits.double().log_softmax(-1)
        for row, position in one["answer"].nonzero().tolist():
            nll -= values[row, position, one["targets"][row, position]].item()
            count += 1
    found = perplexities(model_source(model), {"all": held})
    assert count == 8
    assert found["all"] == pytest.approx(math.exp(nll / count), rel=1e-5)


def test_the_teacher_is_asked_once_and_the_student_in_eval_mode():
    student, teacher = tiny_llms.build("llama", layers=1), tiny_llms.build("llama", seed=1)
    asked = []

    def says(one):
        asked.append(len(one["ids"]))
        return model_source(teacher)(one)

    look = DomainPerplexity(model_source(student.train()), says, {"a": [batch([[3, 4, 5]])], "b": [batch([[6, 7, 8]])]})
    first = look()
    assert not student.training
    with torch.no_grad():
        student.lm_head.weight.mul_(0.5)
    second = look()
    assert len(asked) == 2
    for name in ("a", "b"):
        assert first[name][1] == second[name][1]
        assert first[name][0] != second[name][0]


def test_nothing_to_read_and_a_broken_model_are_told_by_domain():
    with pytest.raises(LimbeckError, match="there is no domain"):
        DomainPerplexity(lambda b: Signals(), lambda b: Signals(), {})
    empty = batch([[3, 4]])
    empty["answer"][:] = False
    with pytest.raises(LimbeckError, match="domain 'b': there is nothing to measure on"):
        perplexities(model_source(tiny_llms.build("gpt2")), {"b": [empty]})
    one = batch([[3, 4, 5]])
    for value in (math.nan, math.inf):
        logits = torch.zeros(1, 3, 9)
        logits[..., 4:6] = value
        found = perplexities(lambda b, logits=logits: Signals(logits=logits), {"b": [one]})["b"]
        assert not math.isfinite(found)
