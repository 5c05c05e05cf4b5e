"""Pipelines proposed from past runs."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import tiny_classifiers as classifiers
import torch
from transformers import BertForSequenceClassification

from limbeck.arguments import read_config
from limbeck.core.check import LimbeckError
from limbeck.data.describe import describe
from limbeck.data.labelled import Row, read_labelled
from limbeck.methods.encoders import auto_distiller as proposals
from limbeck.methods.encoders import distiller
from limbeck.methods.encoders.auto_distiller import Config, Past, auto_distiller, features, main, past_runs, pipelines
from limbeck.models.classifiers import load_classifier


def settings(**changes):
    plain = {"loss": "mse", "mapping": "skip", "alpha": 0.9, "logits": "ce", "mixup": False}
    return plain | {"augment": [], "augment_rate": 0.1} | changes


DATA = {"long": describe([Row("a b c d e f g h", label=str(i % 2)) for i in range(40)])}
DATA["short"] = describe([Row(f"word{i}", label=str(i % 3)) for i in range(12)])


def test_a_planted_rule_is_found():
    """On long texts mi keeps most; on short ones mixup does."""
    grid = product(("mi", "mse", "pkd"), ("skip", "last"), (False, True), DATA)
    past = [
        Past(
            settings(loss=loss, mapping=mapping, mixup=mixup),
            DATA[name],
            0.9 + 0.08 * (loss == "mi" if name == "long" else mixup),
        )
        for loss, mapping, mixup, name in grid
    ]
    (share, best), *_ = auto_distiller(past, DATA["long"])
    assert best["loss"] == "mi"
    assert 0.93 < share <= 0.98
    assert auto_distiller(past, DATA["short"])[0][1]["mixup"]


def test_pipelines_are_different_and_told_apart():
    asked = pipelines()
    assert len({json.dumps(pipeline) for pipeline in asked}) == len(asked)
    assert len({tuple(features(pipeline, DATA["long"])) for pipeline in asked}) == len(asked)
    for pipeline in asked[:3]:
        assert set(pipeline) <= set(vars(distiller.Config()))


def test_data_in_numbers():
    told = DATA["short"]
    assert told["classes"] == 3
    assert told["words"] == 1
    assert told["spread"] == 0
    assert told["riches"] == 1
    assert told["evenness"] == pytest.approx(1)
    assert sum(value for name, value in told.items() if name.startswith("sketch")) == pytest.approx(1)


def tuned_teacher(folder, data):
    """A classifier that has learned the rows of ``data``."""
    rows, tokenizer, names = read_labelled(data), classifiers.tokenizer(), ["c0", "c1", "c2"]
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    model = BertForSequenceClassification(classifiers.config(width=32, layers=2, **labels))
    optim = torch.optim.AdamW(model.parameters(), 3e-3)
    ids = torch.tensor(tokenizer([row.text for row in rows])["input_ids"])
    truth = torch.tensor([names.index(row.label) for row in rows])
    for _ in range(40):
        some = torch.randint(len(rows), (16,))
        model(ids[some], labels=truth[some]).loss.backward()
        optim.step()
        optim.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_rule_that_real_runs_follow_is_found(tmp_path, monkeypatch):
    """The past runs by mse ruined their student with a rate far too high; those without a layer loss did it no harm."""
    rows = [{"text": f"w{i % 3} w{3 + i % 22} w{i % 3}", "label": f"c{i % 3}"} for i in range(150)]
    data, runs = str(tmp_path / "rows.jsonl"), tmp_path / "runs"
    Path(data).write_text("\n".join(map(json.dumps, rows)))
    teacher = tuned_teacher(tmp_path / "bert", data)
    same = {"teacher": teacher, "student": teacher, "data": data, "steps": 2, "batch": 16, "length": 8}
    for seed in range(3):
        good, bad = (distiller.Config(runs / f"{kind}{seed}", seed=seed, **same) for kind in ("good", "bad"))
        distiller.main(replace(good, loss="none", lr=1e-6, augment=("swap",) if seed == 1 else ()))
        if seed < 2:
            distiller.main(replace(bad, loss="mse", lr=1.0, mapping=("skip", "last")[seed]))
    past = list(past_runs(runs))
    kept = {loss: [run.kept for run in past if run.settings["loss"] == loss] for loss in ("none", "mse")}
    assert [len(some) for some in kept.values()] == [3, 2]
    assert min(kept["none"]) > max(kept["mse"]) + 0.1
    assert set(past[0].data) == set(describe(read_labelled(data)))
    monkeypatch.setattr(proposals, "TREES", 20)
    found = main(Config(tmp_path / "auto", runs=runs, data=data, top=2))
    proposed = json.loads((found / "metrics.json").read_text())["pipelines"]
    assert len(proposed) == 2
    for pipeline in proposed:
        assert pipeline["loss"] != "mse"
        assert "substitute" not in pipeline["augment"]  # needs a model of the data's language
        assert max(kept["mse"]) < pipeline["predicted"] <= max(kept["none"])
    best = read_config(found / "best.json", distiller.Config, "distiller")
    assert best.data == data
    for seed in range(2):
        (runs / f"bad{seed}" / "metrics.json").unlink()
    with pytest.raises(LimbeckError, match="only 3 finished runs"):
        main(Config(tmp_path / "other", runs=runs, data=data))
    assert not (tmp_path / "other").exists()


def test_the_command_makes_runs_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(proposals, "TREES", 20)
    teacher, data = classifiers.write_encoder(tmp_path / "bert"), classifiers.write_rows(tmp_path / "rows.jsonl")
    few = {"trials": 5, "steps": 1, "teacher_steps": 1, "batch": 8, "length": 8}
    cfg = Config(tmp_path / "auto", teacher=teacher, data=data, **few)
    out = main(cfg)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["runs"] == 5
    assert len({json.dumps(run.settings) for run in past_runs(out)}) >= 5
    assert 0 <= metrics["kept"]["first proposal, tried"] <= 2
    best = read_config(out / "best.json", distiller.Config, "distiller")
    assert best.teacher == str(out / "trials" / "teacher")
    assert load_classifier(best.teacher, ["c0", "c1", "c2"]).tuned
    assert main(cfg) == out
    assert json.loads((out / "metrics.json").read_text()) == metrics
    with pytest.raises(LimbeckError, match="--trials 4: expected 5 or more"):
        main(replace(cfg, trials=4))
    with pytest.raises(LimbeckError, match="nobody"):
        main(replace(cfg, out=tmp_path / "none", teacher=str(tmp_path / "nobody")))
    assert not (tmp_path / "none").exists()
