"""The three stages of `limbeck well_read_students`: the distillation loss, arms and labels, and the command."""

import json

import pytest
import tiny_classifiers as classifiers
import torch
from encoder_stages import masked_words
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from limbeck.core.check import LimbeckError, in_order
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.methods.encoders import well_read_students
from limbeck.methods.encoders.well_read_students import ARMS, Config, main, some_labelled
from limbeck.objectives.tokens import soft


def test_the_gradient_of_distillation_is_q_minus_p_over_the_batch():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    goal = soft(soft_cross_entropy, on="row")
    goal(Signals(logits=student), Signals(logits=teacher), {}, Clock(0, 1)).total({"row": 5}).backward()
    torch.testing.assert_close(student.grad, (student.softmax(-1) - teacher.softmax(-1)).detach() / 5)


def test_pre_training_teaches_the_body_of_the_classifier_itself():
    student = classifiers.bert(width=8, layers=2)
    body = {name: value.clone() for name, value in student.bert.named_parameters()}
    head = student.classifier.weight.clone()
    well_read_students.pretrain(student, masked_words(0), Config(pretrain_steps=2))
    moved = {name for name, value in student.bert.named_parameters() if not torch.equal(value, body[name])}
    assert {name for name in body if "layer." in name and "key.bias" not in name} <= moved
    assert torch.equal(student.classifier.weight, head)


@pytest.mark.parametrize("fine_tuned", [True, False])
def test_the_command_on_a_bert_and_rows_of_the_user(tmp_path, fine_tuned):
    names = {"id2label": {0: "c2", 1: "c1", 2: "c0"}, "label2id": {"c2": 0, "c1": 1, "c0": 2}}
    kind = {"kind": BertForSequenceClassification, **names} if fine_tuned else {}
    teacher = classifiers.write_encoder(tmp_path / "bert", **kind)
    data = classifiers.write_rows(tmp_path / "rows.jsonl")
    few = {"teacher_steps": 2, "pretrain_steps": 2, "steps": 2, "finetune_steps": 2, "batch": 4, "length": 8}
    out = main(Config(tmp_path / "run", teacher=teacher, data=data, student="bert-tiny", labels=10, **few))
    metrics = json.loads((out / "metrics.json").read_text())
    stages = {"pretrain", "distil", "finetune"} | (set() if fine_tuned else {"teacher"})
    assert set(metrics) == {*stages, "held_out", "before"}
    student = AutoModelForSequenceClassification.from_pretrained(out)
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (2, 128)
    assert student.config.id2label[0] == ("c2" if fine_tuned else "c0")


def test_arms_and_labels(tmp_path):
    assert in_order(("finetune", "pretrain"), ARMS, "--stages") == ["pretrain", "finetune"]
    with pytest.raises(LimbeckError, match="did you mean 'distil'"):
        main(Config(tmp_path / "run", stages=("distill",)))
    rows = some_labelled(Config(data=classifiers.write_rows(tmp_path / "rows.jsonl"), labels=7))
    assert sum(row.label is not None for row in rows.train) == 7
    assert all(row.label is not None for row in rows.test)
