"""A comparison shows what several runs share and where they differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck import cli
from limbeck.core.check import LimbeckError
from limbeck.report.comparison import compare, names, read_run, sections
from limbeck.report.sections import Curve, Table


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folders = []
    for number, place in enumerate(("a/taid", "b/taid")):
        folder = tmp_path / place
        (folder / "stages" / "taid").mkdir(parents=True)
        rows = [{"step": step, "loss": 3.0 - step - number} for step in range(3)]
        (folder / "stages" / "taid" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        record = {"method": "taid", "config": {"lr": 1e-4 * (number + 1), "steps": 3}, "versions": {"torch": "2"}}
        (folder / "run.json").write_text(json.dumps(record))
        if number == 0:
            (folder / "metrics.json").write_text('{"score": {"all": 0.5}}')
        folders.append(folder)
    return folders


def test_metrics_curves_and_differences(runs: list[Path]) -> None:
    found = sections([read_run(runs[0], "a"), read_run(runs[1], "b")])
    metrics, curve, settings, environments = found
    assert isinstance(metrics, Table)
    assert metrics.rows == [["score.all", 0.5, ""]]
    assert isinstance(curve, Curve)
    assert {name: list(ys) for name, (_, ys) in curve.series.items()} == {"a": [3.0, 2.0, 1.0], "b": [2.0, 1.0, 0.0]}
    assert isinstance(settings, Table)
    assert [row[0] for row in settings.rows] == ["lr"]
    assert isinstance(environments, Table)
    assert (list(environments.rows), environments.note) == ([], "None.")


def test_the_command_writes_one_page(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both.html"
    assert cli.main(["report", "compare", "--runs", *map(str, runs), "--out", str(out)]) == 0
    assert "a/taid" in out.read_text()
    assert str(out) in capsys.readouterr().out


def test_names_are_as_short_as_can_be(tmp_path: Path) -> None:
    assert names([tmp_path / "x" / "taid", tmp_path / "x" / "mend"]) == ["taid", "mend"]
    assert names([tmp_path / "x" / "taid", tmp_path / "y" / "taid"]) == ["x/taid", "y/taid"]


def test_mistakes_are_named(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="at least two folders"):
        compare(runs[:1], tmp_path / "x.html")
    with pytest.raises(LimbeckError, match=r"ends in .html"):
        compare(runs, tmp_path / "x.png")
    with pytest.raises(LimbeckError, match=r"holds no run.json"):
        compare([*runs, tmp_path], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
