"""Pipelines proposed from past runs."""

import json
from itertools import product

import pytest
import tiny_classifiers as classifiers

from limbeck.core.check import LimbeckError
from limbeck.data.describe import describe
from limbeck.data.labelled import Row, read_labelled
from limbeck.methods.encoders import distiller
from limbeck.methods.encoders.auto_distiller import Config, Past, auto_distiller, features, main, past_runs, pipelines


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


def test_the_command_after_real_runs(tmp_path):
    teacher, data = classifiers.write_encoder(tmp_path / "bert"), classifiers.write_rows(tmp_path / "rows.jsonl")
    few = {"teacher": teacher, "data": data, "teacher_steps": 1, "steps": 1, "batch": 4, "length": 8}
    out = distiller.main(distiller.Config(tmp_path / "runs" / "real", loss="mse", **few))
    (one,) = past_runs(tmp_path / "runs")
    assert one.settings["loss"] == "mse"
    assert set(one.data) == set(describe(read_labelled(data)))
    with pytest.raises(LimbeckError, match="only 1 finished runs"):
        main(Config(tmp_path / "auto", runs=tmp_path / "runs", data=data))
    assert not (tmp_path / "auto").exists()
    for number in range(4):
        copy = tmp_path / "runs" / f"copy{number}"
        copy.mkdir()
        for name in ("run.json", "metrics.json"):
            (copy / name).write_text((out / name).read_text())
    found = main(Config(tmp_path / "auto", runs=tmp_path / "runs", data=data, top=2))
    assert len(json.loads((found / "metrics.json").read_text())["pipelines"]) == 2
    from limbeck.arguments import read_config

    best = read_config(found / "best.json", distiller.Config, "distiller")
    assert best.data == data
