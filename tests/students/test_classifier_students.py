"""Classifiers by name: kept, headed anew, cut, or made at a size."""

import pytest
import tiny_classifiers as classifiers
import torch
from transformers import BertForSequenceClassification

from limbeck.core.check import LimbeckError
from limbeck.models.classifiers import load_classifier
from limbeck.students.classifiers import classifier_student
from limbeck.students.layers import shape

NAMES = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


def test_a_fine_tuned_one_is_kept_and_an_encoder_gets_a_head(tmp_path):
    tuned = classifiers.write_encoder(tmp_path / "tuned", BertForSequenceClassification, **NAMES)
    found = load_classifier(tuned, ["c", "a"])
    assert (found.classes, found.tuned) == (["a", "b", "c"], True)
    encoder = classifiers.write_encoder(tmp_path / "encoder")
    new = load_classifier(encoder, ["x", "y"])
    assert (new.classes, new.tuned, new.model.config.num_labels) == (["x", "y"], False, 2)
    words = classifiers.bert(classifiers.BertForMaskedLM).bert.embeddings.word_embeddings.weight
    assert torch.equal(new.model.bert.embeddings.word_embeddings.weight, words)
    with pytest.raises(LimbeckError, match="tells a, b, c apart, but the data has the class"):
        load_classifier(tuned, ["a", "z"])


def test_students_by_name(tmp_path):
    teacher, tokenizer = classifiers.bert(**NAMES), classifiers.tokenizer()
    sizes = {"every-other": (2, 16, 2), "half": (2, 8, 2), "3x12": (3, 12, 2), "bert-tiny": (2, 128, 2)}
    for name, size in sizes.items():
        student = classifier_student(name, teacher, tokenizer, ["a", "b", "c"])
        assert shape(student) == size
        assert student.config.id2label == {0: "a", 1: "b", 2: "c"}
        assert not student.training
    turned = {"id2label": {0: "c", 1: "b", 2: "a"}, "label2id": {"c": 0, "b": 1, "a": 2}}
    other = classifiers.write_encoder(tmp_path / "turned", BertForSequenceClassification, **turned)
    with pytest.raises(LimbeckError, match="tells c, b, a apart, in this order, but the teacher a, b, c"):
        classifier_student(other, teacher, tokenizer, ["a", "b", "c"])
