"""Trackers and progress."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import Accelerator, tracking
from fit_child import shared_out
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from limbeck.core import track
from limbeck.core.check import LimbeckError
from limbeck.core.fit import fit


def scalars(folder: Path) -> dict[str, list[int]]:
    """Steps at which each scalar was written, over all event files below ``folder``."""
    found: dict[str, list[int]] = {}
    for path in folder.rglob("events.*"):
        events = EventAccumulator(str(path)).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend(event.step for event in events.Scalars(name))
    return found


def test_tensorboard_gets_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, _ = shared_out(1, 3)
    fit(stage, tmp_path / "by argument", tracker="tensorboard")
    monkeypatch.setenv("LIMBECK_TRACKER", "tensorboard")
    fit(shared_out(1, 3)[0], tmp_path / "by environment")
    for folder in ("by argument", "by environment"):
        found = scalars(tmp_path / folder / "toy")
        assert found["soft"] == found["loss"] == [1, 2, 3]
        assert "step" not in found


def test_a_callers_trackers_are_used_and_left_running(tmp_path: Path) -> None:
    accelerator = Accelerator(log_with="tensorboard", project_dir=str(tmp_path))
    accelerator.init_trackers("mine")
    fit(shared_out(1, 2)[0], accelerator=accelerator)
    assert len(accelerator.trackers) == 1
    accelerator.trackers[0].finish()
    assert scalars(tmp_path)["loss"] == [1, 2]


def test_wrong_trackers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, _ = shared_out(1, 2)
    with pytest.raises(LimbeckError, match="did you mean 'tensorboard'"):
        fit(stage, tmp_path, tracker="tensorbord")
    with pytest.raises(LimbeckError, match="needs a folder"):
        fit(stage, tracker="tensorboard")
    monkeypatch.setenv("LIMBECK_TRACKER", "tensorboard")
    fit(stage)  # a wish for all runs, so one without a folder goes without
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(LimbeckError, match=r"'tensorboard' is not installed: pip install 'limbeck\[trackers\]'"):
        fit(stage, tmp_path, tracker="tensorboard")


def test_without_a_terminal_it_is_quiet_but_for_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(shared_out(1, 3)[0])
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(track, "QUIET_SECONDS", -1.0)
    fit(shared_out(1, 3)[0])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" loss ")[0] for line in lines] == ["toy 1/3", "toy 2/3", "toy 3/3"]
    assert all("rows/s" in line for line in lines)


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    fit(shared_out(1, 3)[0])
    shown = capsys.readouterr().err
    assert "toy" in shown
    assert "3/3" in shown
    assert "rows/s" in shown
