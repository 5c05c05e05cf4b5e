"""The report of a run is read from the run's own files."""

from __future__ import annotations

import json
from pathlib import Path

from limbeck.report.run_report import curves, read_rows, write_run_report
from limbeck.report.sections import Curve, Text
from limbeck.report.values import flat, show


def write_metrics(folder: Path, rows: list[object], tail: str = "") -> Path:
    folder.mkdir(parents=True)
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def test_rows_survive_a_kill_and_a_resume(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 2.5}, ["odd"]]
    path = write_metrics(tmp_path / "stages" / "meta", rows, tail='{"step": 3, "lo')
    assert read_rows(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]


def test_one_curve_per_quantity_the_loss_first_the_machinery_last(tmp_path: Path) -> None:
    rows = [
        {"step": n, "lr": 1e-4, "grad_norm": 1.0, "kl": 1.0, "loss": 2.0, "rows": 8, "seconds": 1.0} for n in range(3)
    ]
    write_metrics(tmp_path / "stages" / "meta", [*rows, {"step": 3, "loss": float("nan")}])
    found = curves(tmp_path)
    assert [curve.title for curve in found] == ["meta: loss", "meta: kl", "meta: lr", "meta: grad_norm"]
    assert found[0].series["loss"] == ([0, 1, 2], [2.0, 2.0, 2.0])


def test_quantities_of_one_kind_share_a_picture_and_never_more_than_there_are_colours(tmp_path: Path) -> None:
    kinds = [f"share.{letter}" for letter in "abcdefgh"] + ["tone.x", "loss"]
    rows: list[object] = [{"step": n} | {name: n + i / 10 for i, name in enumerate(kinds)} for n in range(2)]
    write_metrics(tmp_path / "stages" / "s", rows)
    found = curves(tmp_path)
    assert [(curve.title, list(curve.series)) for curve in found] == [
        ("s: loss", ["loss"]),
        ("s: share", list("abcdef")),
        ("s: share", list("gh")),
        ("s: tone.x", ["tone.x"]),
    ]
    assert found[1].series["b"] == ([0, 1], [0.1, 1.1])


def test_a_term_that_is_the_loss_is_drawn_once(tmp_path: Path) -> None:
    write_metrics(tmp_path / "stages" / "meta", [{"step": n, "kl": 3.0 - n, "loss": 3.0 - n} for n in range(3)])
    assert [curve.title for curve in curves(tmp_path)] == ["meta: loss"]


def test_stages_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("ce-only/meta", "mend/meta"):
        write_metrics(tmp_path / "stages" / folder, [{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.0}])
    assert {curve.title for curve in curves(tmp_path)} == {"ce-only / meta: loss", "mend / meta: loss"}


def test_report_holds_sections_metrics_configuration_and_files(tmp_path: Path) -> None:
    write_metrics(tmp_path / "stages" / "meta", [{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.0}])
    record = {"method": "fake", "seed": 3, "config": {"steps": 2}, "versions": {"torch": "2"}, "command": ["limbeck"]}
    sections = [Curve("Own", {"a": ([0, 1], [0, 1])}), Text("After", "text")]
    html = write_run_report(tmp_path, record, {"score": {"all": 0.5}}, sections).read_text()
    places = [
        html.index(part)
        for part in ("Own", "meta: loss", "<h2>After", "score.all", "<h2>Configuration", "metrics.jsonl")
    ]
    assert places == sorted(places)
    assert "versions.torch" in html


def test_values_for_a_reader() -> None:
    assert show(1e6) == "1.00e6"
    assert show(1.25e-7) == "1.25e-7"
    assert show(0.0) == "0.000"
    assert show(float("nan")) == "nan"
    assert show(12_345) == "12\u202f345"
    assert show(True) == "yes"
    assert show([1, "a", None]) == "1, a, "
    assert flat({"a": {"b": 1}, "c": {}}) == [("a.b", 1)]
