"""``limbeck analyses loyalty`` on files of predictions."""

import json
from pathlib import Path

import pytest

from limbeck.analyses.loyalty import probability_loyalty
from limbeck.cli import main

TEACHER = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]
STUDENT = [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]]
NAMES = ["neg", "neutral", "pos"]


def write(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def probabilities(path: Path, table: list[list[float]], order=(0, 1, 2), labels=()) -> Path:
    rows = [{"probabilities": {NAMES[i]: row[i] for i in order}} for row in table]
    return write(path, *(row | ({"label": labels[n]} if labels else {}) for n, row in enumerate(rows)))


def run(*words: object) -> int:
    return main(["analyses", "loyalty", *map(str, words)])


def test_classes_are_matched_by_name_and_accuracies_stand_beside(tmp_path, capsys):
    teacher = probabilities(tmp_path / "t.jsonl", TEACHER, order=(2, 0, 1), labels=("neg", "neutral", "neg"))
    student = probabilities(tmp_path / "s.jsonl", STUDENT)
    assert run("--student", student, "--teacher", teacher, "--out", tmp_path / "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found[str(teacher)]["label"] == pytest.approx(2 / 3)
    assert found[str(teacher)]["probability"] == pytest.approx(probability_loyalty(TEACHER, STUDENT))
    assert found[str(teacher)]["accuracy"] == pytest.approx(2 / 3)
    assert found["student"]["accuracy"] == pytest.approx(1 / 3)
    assert found["average"] == found[str(teacher)]
    printed = capsys.readouterr().out
    assert "3 items" in printed
    assert "0.6667" in printed


def test_scores_give_regression_loyalty(tmp_path):
    teachers = [
        write(tmp_path / f"t{i}.jsonl", *({"score": x} for x in xs)) for i, xs in enumerate([[1, 2, 4], [2, 2, 5]])
    ]
    student = write(tmp_path / "s.jsonl", *({"score": x} for x in (2, 4, 8)))
    words = ["--student", student, "--teacher", *teachers, "--score-range", 5, "--out", tmp_path / "found.json"]
    assert run(*words) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found[str(teachers[0])] == {"pearson": pytest.approx(1), "range": pytest.approx(1 - 7 / 15)}
    assert set(found) == {*map(str, teachers), "average"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"probs": [0.5, 0.5]}], 't.jsonl:1: expected "probabilities" by class'),
        ([{"probabilities": {"neg": "x", "neutral": 0, "pos": 1}}], "t.jsonl:1: a probability has to be a number"),
        ([{"probabilities": {"neg": 0.5, "pos": 0.5}}] * 3, "do not have the same classes"),
        ([{"probabilities": dict.fromkeys(NAMES, 1 / 3)}] * 2, r"one shape (items, classes); got (2, 3) and (3, 3)"),
        ([{"probabilities": dict.fromkeys(NAMES, 1.0)}] * 3, "row 0 sums to 3 instead of 1"),
        ([{"probabilities": dict.fromkeys(NAMES, 1 / 3)}, {"score": 2}], "t.jsonl:2: the classes are []"),
        ([{"score": 1}] * 3, "scores against classes"),
        ([{"probabilities": dict.fromkeys(NAMES, 1 / 3), "label": "odd"}] * 3, "'odd' is none of the classes"),
    ],
)
def test_bad_files_are_told_in_one_sentence(tmp_path, capsys, rows, message):
    student = probabilities(tmp_path / "s.jsonl", STUDENT)
    out = tmp_path / "found.json"
    assert run("--student", student, "--teacher", write(tmp_path / "t.jsonl", *rows), "--out", out) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists()
