"""What the methods for classifiers share: pseudo-labels, and labels that are left."""

import json

import pytest
import tiny_classifiers as classifiers
import torch
from transformers import RobertaConfig, RobertaModel

from limbeck.core.check import LimbeckError
from limbeck.data.labelled import Row, Rows, with_labels
from limbeck.evaluation.model import check_length
from limbeck.methods.encoders import distiller
from limbeck.methods.encoders.classification import job_of, pseudo_labelled, task


def job(tmp_path, **settings):
    data = classifiers.write_rows(tmp_path / "rows.jsonl")
    teacher = classifiers.write_encoder(tmp_path / "bert", kind=classifiers.BertForSequenceClassification, seed=5)
    config = tmp_path / "bert" / "config.json"
    named = json.loads(config.read_text()) | {"id2label": {"0": "c2", "1": "c0", "2": "c1"}}
    config.write_text(json.dumps(named | {"label2id": {"c2": 0, "c0": 1, "c1": 2}}))
    cfg = distiller.Config(teacher=teacher, data=data, batch=4, **{"length": 8, **settings})
    return job_of(cfg, task(data, 0)), cfg


@pytest.mark.parametrize("pair", [None, "w9 w2"])
def test_pseudo_labels_are_what_the_teacher_says_of_each_row(tmp_path, pair):
    made, cfg = job(tmp_path)
    made.teacher.train()  # dropout would make them draws
    rows = [Row(f"w{i} w{2 * i}", pair) for i in range(10)]
    found = pseudo_labelled(rows, made, cfg, "cpu")
    assert [row[:2] for row in found] == [row[:2] for row in rows]
    assert len({row.label for row in found}) > 1
    for row in found:
        coded = made.tokenizer(*[text for text in row[:2] if text], return_tensors="pt", return_token_type_ids=True)
        with torch.no_grad():
            said = int(made.teacher(**coded).logits.argmax())
        assert row.label == made.teacher.config.id2label[said]
    assert not made.teacher.training
    assert pseudo_labelled([], made, cfg, "cpu") == []


def test_new_rows_are_learned_with_the_teachers_labels(tmp_path, monkeypatch):
    made, cfg = job(tmp_path, augment=("swap",), weight_hard=1.0, steps=1, out=tmp_path / "run")
    seen = []
    monkeypatch.setattr(distiller, "distiller", lambda student, teacher, stream, *more: seen.append(stream) or {})
    distiller.main(cfg)
    labels = [label for _, label, _ in seen[0].rows]
    assert len(labels) > len(made.rows.train)
    assert -100 not in labels[len(made.rows.train) :]


def test_rows_longer_than_a_model_reads_are_refused(tmp_path):
    with pytest.raises(LimbeckError, match="--length 25: the teacher reads 24 tokens at most"):
        job(tmp_path, length=25)


def test_robertas_first_places_are_for_no_token():
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = RobertaModel(RobertaConfig(vocab_size=30, max_position_embeddings=26, **small))
    check_length(24, model=model)
    assert model(torch.full((1, 24), 5)).last_hidden_state.isfinite().all()
    with pytest.raises(LimbeckError, match="the model reads 24 tokens at most"):
        check_length(25, model=model)


def test_labels_that_are_left():
    rows = Rows([Row("a", label="x" if i % 2 else None) for i in range(10)], [Row("b", label="y")])
    assert [row.label for row in with_labels(rows, 2).train] == [None, "x", None, "x", *[None] * 6]
    assert with_labels(rows, None) == rows
    with pytest.raises(LimbeckError, match="--labels 1: expected 2 or more"):
        with_labels(rows, 1)


def test_every_held_out_row_is_judged(tmp_path):
    found, _ = job(tmp_path)
    assert sum(len(batch["labels"]) for batch in found.test) == len(found.rows.test)
