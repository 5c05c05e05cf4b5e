"""The pipeline of `limbeck distiller`: its settings, and the command on a user's BERT."""

import json

import pytest
import tiny_classifiers as classifiers
import torch
from encoder_stages import distiller_stage
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from limbeck.core.check import LimbeckError
from limbeck.methods.encoders import augmentation
from limbeck.methods.encoders.distiller import Config, main, matched, objective
from limbeck.sources.mixed import mixed
from limbeck.sources.model import model_source


@pytest.mark.parametrize("loss", ["mi", "mse", "ce", "cosine", "pkd", "attention_mse", "attention_ce"])
@pytest.mark.parametrize("mapping", ["skip", "last", "single", "emd"])
def test_every_pair_of_settings_gives_a_finite_gradient(loss, mapping):
    made = distiller_stage(0, loss=loss, mapping=mapping)
    terms = made.step(next(iter(made.stream)), None)
    assert {"logits", "layers"} == set(terms)
    terms["layers"].sum.backward()
    for name, module in made.train.items():
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert gradients, f"{name} learns nothing"
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_embeddings_are_matched_where_they_say_something():
    student, teacher = classifiers.bert(layers=2), classifiers.bert()
    assert matched(student, teacher, Config(loss="mse")).pairs == [(0, 0), (1, 2), (2, 4)]
    for cfg in (Config(loss="mse", embeddings=False), Config(loss="mi"), Config(loss="attention_ce")):
        assert matched(student, teacher, cfg).pairs == [(1, 2), (2, 4)]
    assert matched(student, teacher, Config(loss="none")) is None


def test_mixup_reads_blends():
    model = classifiers.bert()
    batch = classifiers.labelled(0)[0]
    batch["mask"] = torch.ones_like(batch["mask"])
    other = batch["ids"].flip(0)
    says = mixed(model_source(model))
    for share, ids in ((1.0, batch["ids"]), (0.0, other)):
        blended = says(batch | {"other_ids": other, "share": torch.full((8,), share)}).logits
        torch.testing.assert_close(blended, model_source(model)(batch | {"ids": ids}).logits)
    half = says(batch | {"other_ids": other, "share": torch.full((8,), 0.5)}).logits
    torch.testing.assert_close(half, half.flip(0))
    torch.testing.assert_close(says(batch).logits, model_source(model)(batch).logits)


@pytest.mark.parametrize("fine_tuned", [True, False])
def test_the_command_on_a_bert_and_rows_of_the_user(tmp_path, fine_tuned):
    names = {"id2label": {0: "c0", 1: "c1", 2: "c2"}, "label2id": {"c0": 0, "c1": 1, "c2": 2}}
    kind = {"kind": BertForSequenceClassification, **names} if fine_tuned else {}
    teacher = classifiers.write_encoder(tmp_path / "bert", **kind)
    data = classifiers.write_rows(tmp_path / "rows.jsonl")
    cfg = Config(tmp_path / "run", teacher=teacher, data=data, teacher_steps=2, steps=2, batch=4, length=8)
    more = {"augment": ("swap", "substitute"), "augmenter": classifiers.write_encoder(tmp_path / "lm"), "mixup": True}
    out = main(Config(**{**vars(cfg), **({} if fine_tuned else more)}))
    metrics = json.loads((out / "metrics.json").read_text())
    assert ("teacher" in metrics) is not fine_tuned
    assert (metrics["new_rows"] > 0) is not fine_tuned
    assert set(metrics["held_out"]) == {"accuracy", "teacher_accuracy", "agreement", "logits"}
    student = AutoModelForSequenceClassification.from_pretrained(out)
    assert student.config.num_hidden_layers == 2
    assert student.config.id2label == {0: "c0", 1: "c1", 2: "c2"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.2}, r"--alpha 1\.2: expected a share"),
        ({"batch": 1}, "--batch 1: mi contrasts the rows"),
        ({"weight_logits": -1.0}, r"--weight-logits -1\.0: expected"),
        ({"loss": "none", "weight_logits": 0.0}, "all weights are 0"),
        ({"mapping": "lats"}, "did you mean 'last'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    student, teacher, cfg = classifiers.bert(layers=2), classifiers.bert(), Config(**settings)
    with pytest.raises(LimbeckError, match=message):
        objective(matched(student, teacher, cfg), cfg)


def test_policies_that_need_a_model_ask_for_it():
    with pytest.raises(LimbeckError, match="--augment translate needs two --translators"):
        augmentation.policies(Config(augment=("translate",)))
    with pytest.raises(LimbeckError, match="--augment substitute needs --augmenter"):
        augmentation.policies(Config(augment=("substitute",), data="x"))
