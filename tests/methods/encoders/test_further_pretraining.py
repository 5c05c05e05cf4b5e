"""`limbeck further_pretraining`: contracts of its stages on texts and images, where it starts, and the command."""

import json
from copy import deepcopy

import pytest
import tiny_autoencoders as tiny
import tiny_classifiers as classifiers
import torch
from contract import CHECKS, Case, stages_of
from transformers import (
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    ViTMAEForPreTraining,
)

from limbeck.cli import main as limbeck
from limbeck.core.batch import IGNORE
from limbeck.core.stage import freeze
from limbeck.core.terms import Clock
from limbeck.methods.encoders import further_pretraining as method
from limbeck.methods.encoders.further_pretraining import Config, main, rated
from limbeck.methods.encoders.further_tasks import of_images, of_texts


def words(seed: int):
    made = []
    for batch in classifiers.labelled(seed):
        answer = batch["mask"] & (torch.arange(7) % 3 == 1)
        targets = batch["ids"].where(answer, torch.tensor(IGNORE))
        ids = batch["ids"].where(~answer, torch.tensor(4))
        made.append({"ids": ids, "mask": batch["mask"], "answer": answer, "targets": targets})
    return made


def parts(kind: str, seed: int):
    """Model, voices and stream."""
    if kind == "texts":
        return classifiers.bert(BertForMaskedLM, width=8, layers=2, seed=seed), of_texts(), words(seed)
    model = tiny.autoencoder(seed)
    return model, of_images(model), tiny.batches(seed)


def stage(kind: str, number: int, seed: int):
    """A stage of the recipe, with a teacher that is away from the student."""
    model, voices, stream = parts(kind, seed)
    cfg = Config(seed=seed, steps=8)
    if number == 0:
        return stages_of(method, lambda: method.pretrain("further", model, stream, 8, voices, cfg))[0]
    teacher = freeze(parts(kind, seed + 1)[0])
    return stages_of(method, lambda: method.self_distil("taught", model, teacher, stream, voices, cfg))[0]


CASES = [
    Case(f"{name} on {kind}", lambda seed, kind=kind, number=number: stage(kind, number, seed))
    for kind in ("texts", "images")
    for number, name in enumerate(("masked training", "self-distillation"))
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_contract(case, check, tmp_path):
    check(case, tmp_path)


@pytest.mark.parametrize("kind", ["texts", "images"])
def test_the_student_starts_from_the_first_weights_and_not_from_the_teachers(kind, monkeypatch):
    model, voices, stream = parts(kind, 0)
    first, seen = {name: value.clone() for name, value in model.state_dict().items()}, []

    def watched(stage, *rest):
        if stage.frozen:
            assert all(torch.equal(value, first[name]) for name, value in stage.train["model"].state_dict().items())
            terms = stage.step(stream[0], Clock(0, 1))
            features = [voices.whole(one)(stream[0]).pooled for one in (model, stage.frozen["teacher"])]
            apart = (features[0] - features[1]).square().sum()
            torch.testing.assert_close(terms["feature"].sum, apart)
            seen.append((float(apart.detach()), terms["feature"].weight))
            return fit(stage, *rest)
        return fit(stage, *rest)

    fit = method.fit
    monkeypatch.setattr(method, "fit", watched)
    teacher, said = method.further_pretraining(model, stream, voices, Config(steps=3, lr=1e-2, weight=0.5, rounds=2))
    assert list(said) == ["further", "self-distilled", "self-distilled-2"]
    assert len(seen) == 2
    assert all(apart > 1e-4 and weight == 0.5 for apart, weight in seen)
    assert any(not torch.equal(value, first[name]) for name, value in teacher.state_dict().items())
    assert any(not torch.equal(value, first[name]) for name, value in model.state_dict().items())


def test_the_feature_term_brings_the_student_nearer_to_its_teacher():
    ends = []
    for weight in (0.0, 1.0):
        model, voices, stream = parts("images", 0)
        teacher = freeze(deepcopy(model))
        with torch.no_grad():
            for parameter in teacher.vit.layers.parameters():
                parameter.mul_(1.2)
        method.self_distil("x", model, teacher, stream, voices, Config(steps=40, lr=3e-3, weight=weight))
        said, told = (voices.whole(one)(stream[0]).pooled for one in (model, teacher))
        ends.append(float((said - told).square().sum(1).mean().detach()))
    assert ends[1] < 0.2 * ends[0]


FEW = {"steps": 2, "finetune_steps": 2, "batch": 4}


def roberta(folder) -> str:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaForMaskedLM(
        RobertaConfig(vocab_size=30, max_position_embeddings=24, pad_token_id=0, **sizes)
    ).save_pretrained(folder)
    classifiers.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("make", [classifiers.write_encoder, roberta])
def test_the_command_on_an_encoder_and_rows_of_the_user(tmp_path, make):
    cfg = Config(tmp_path / "run", model=make(tmp_path / "model"), length=8, feature="mean", labels=20, **FEW)
    cfg = Config(**{**vars(cfg), "data": classifiers.write_rows(tmp_path / "rows.jsonl")})
    out = main(cfg)
    metrics = json.loads((out / "metrics.json").read_text())
    stages = ["initial", "further", "self-distilled"]
    assert list(metrics["held_out"]) == stages
    assert {f"finetune-{name}" for name in stages} <= set(metrics)
    assert metrics["rows"]["labelled"] == 20
    found = metrics["held_out"]
    assert found["initial"]["moved"] == found["further"]["feature"] == 0
    assert min(found[name]["moved"] for name in stages[1:]) > 0
    assert set(found["initial"]) == {"masked", "feature", "moved", "accuracy"}
    assert AutoModelForSequenceClassification.from_pretrained(out).config.id2label == {0: "c0", 1: "c1", 2: "c2"}
    kept = AutoModelForMaskedLM.from_pretrained(out / "encoder")
    first = AutoModelForMaskedLM.from_pretrained(cfg.model)
    assert not torch.equal(next(kept.parameters()), next(first.parameters()))


def test_the_command_on_an_autoencoder_and_a_folder_of_images_of_the_user(tmp_path):
    tiny.autoencoder(channels=3).save_pretrained(tmp_path / "mae")
    data = tiny.write_images(tmp_path / "images")
    cfg = Config(tmp_path / "run", model=str(tmp_path / "mae"), data=data, beside=("initial",), mask=0.5, **FEW)
    out = main(cfg)
    metrics = json.loads((out / "metrics.json").read_text())
    assert [name for name, seen in metrics["held_out"].items() if "accuracy" in seen] == ["initial", "self-distilled"]
    assert metrics["rows"] == {"train": 27, "labelled": 23, "test": 5}
    assert AutoModelForImageClassification.from_pretrained(out).config.id2label == {0: "lying", 1: "standing"}
    ViTMAEForPreTraining.from_pretrained(out / "encoder")
    assert (out / "preprocessor_config.json").exists()


def test_without_fine_tuning_the_model_itself_is_written(tmp_path):
    out = main(Config(tmp_path / "run", pretrain_steps=2, **FEW | {"finetune_steps": 0}))
    ViTMAEForPreTraining.from_pretrained(out)
    assert "pretrain" in json.loads((out / "metrics.json").read_text())
    assert not (out / "encoder").exists()


def test_rates_are_the_papers_for_models_of_the_user_and_higher_for_small_ones():
    assert (rated(Config()).lr, rated(Config()).finetune_lr) == (1e-3, 2e-3)
    own = rated(Config(model="x", finetune_lr=2e-5))
    assert (own.lr, own.finetune_lr) == (1.5e-4, 2e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "IMAGES"], "--model: images in a folder need a ViT-MAE"),
        (["--data", "IMAGES", "--model", "BERT"], "is of the type bert, but images need a masked autoencoder"),
        (["--mask", "1.5"], "--mask 1.5: expected a share of the patches between 0 and 1"),
        (["--mask", "0.99"], "hides all of an image's 16 patches"),
        (["--rounds", "0"], "--rounds 0: expected a whole number of at least 1"),
        (["--finetune-lr", "0"], "--finetune-lr 0.0: expected a learning rate above 0"),
        (["--weight", "-1"], "--weight -1.0: expected a weight of at least 0"),
        (["--data", "none.jsonl"], "none.jsonl: no such file or folder"),
        (["--corpus", "x.txt"], "--corpus: texts are no help with images"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, capsys, words, said):
    places = {"IMAGES": tmp_path / "images", "BERT": tmp_path / "bert"}
    tiny.write_images(places["IMAGES"])
    if "BERT" in words:
        classifiers.write_encoder(places["BERT"])
    given = [str(places.get(word, word)) for word in words]
    assert limbeck(["further_pretraining", "--out", str(tmp_path / "run"), *given]) == 2
    heard = capsys.readouterr().err.strip()
    assert said in heard
    assert "\n" not in heard
    assert not (tmp_path / "run").exists()
