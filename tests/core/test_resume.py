"""A run that is stopped at any moment continues bit for bit; what belongs to another stage is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_child import Net, Pace, batches, controlled, shared_out
from torch import nn

from limbeck.core import checkpoint, save
from limbeck.core.check import LimbeckError
from limbeck.core.fit import fit
from limbeck.core.save import load_tensors
from limbeck.core.stage import Optim, Stage
from limbeck.core.terms import Clock, per

STEPS = 7


class Stop(BaseException):
    """Nothing catches it: the run ends where it stands."""


def rows(folder: Path) -> list[dict[str, float]]:
    """The log without the clock on the wall."""
    lines = (folder / "toy" / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def final(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint: weights, buffers, random state, stream and controller."""
    at = folder / "toy" / f"step-{step:08d}"
    return load_tensors(at / "weights.safetensors")[0] | load_tensors(at / "memory.safetensors")[0]


def memory(folder: Path, step: int = STEPS) -> Any:
    words = json.loads((folder / "toy" / f"step-{step:08d}" / "memory.json").read_text())
    del words["memory"]["progress"]["seconds"]
    return words


def assert_same_run(a: Path, b: Path, step: int = STEPS) -> None:
    assert rows(a) == rows(b)
    assert [row["step"] for row in rows(a)] == list(range(1, step + 1))
    assert memory(a, step) == memory(b, step)
    one, two = final(a, step), final(b, step)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    fit(controlled(STEPS)[0], folder)
    return folder


def stop_at(step: int) -> Callable[[Mapping[str, float], Clock], None]:
    def after(logs: Mapping[str, float], clock: Clock) -> None:
        if clock.step == step:
            raise Stop

    return after


@pytest.mark.parametrize("save_every", [1, 3])
def test_stopped_and_resumed_is_the_same_as_straight(tmp_path: Path, straight: Path, save_every: int) -> None:
    stage, _ = controlled(STEPS, save_every)
    with pytest.raises(Stop):
        fit(replace(stage, after=[*stage.after, stop_at(5)]), tmp_path)
    assert (tmp_path / "toy" / f"step-0000000{5 - 1 if save_every == 1 else 3}").is_dir()
    stage, _ = controlled(STEPS, save_every, seed=99)  # other initial weights: all of them come from the checkpoint
    fit(stage, tmp_path)
    assert_same_run(tmp_path, straight)
    pace = stage.after[0]
    assert isinstance(pace, Pace)
    assert sorted(pace.heard) == list(range(1, STEPS + 1))


def test_a_list_is_drawn_forward_on_resuming(tmp_path: Path) -> None:
    fit(shared_out(1, STEPS)[0], tmp_path / "straight")
    stage, _ = shared_out(1, STEPS)
    with pytest.raises(Stop):
        fit(replace(stage, after=[stop_at(4)], save_every=2), tmp_path / "stopped")
    fit(shared_out(1, STEPS)[0], tmp_path / "stopped")
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_a_crash_at_any_file_operation_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rename, flush, write and removal of a short run is once the last thing that happens."""
    left = [10**9]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Stop
            return real(*args, **kwargs)

        return call

    for module, name in [
        (os, "replace"),
        (save, "_flush"),
        (checkpoint, "write_tensors"),
        (checkpoint.shutil, "rmtree"),
    ]:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    fit(controlled(2, save_every=1)[0], tmp_path / "straight")
    needed = 10**9 - left[0]
    assert needed > 20
    for crash in range(needed):
        left[0] = crash
        folder = tmp_path / str(crash)
        with pytest.raises(Stop):
            fit(controlled(2, save_every=1)[0], folder)
        left[0] = 10**9
        fit(controlled(2, save_every=1)[0], folder)
        assert_same_run(tmp_path / "straight", folder, 2)
        assert {path.name for path in (folder / "toy").iterdir()} == {"done", "metrics.jsonl", "step-00000002"}


def test_killed_at_ten_random_moments(tmp_path: Path) -> None:
    """kill -9, ten times, at moments spread over training and saving; the weights and the log are as if never."""
    steps = 33
    command = [sys.executable, str(Path(__file__).with_name("kill_child.py")), str(tmp_path), str(steps)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    reached = json.loads(done.stdout)
    assert len(reached) == 10
    assert reached == sorted(reached)
    assert 20 < reached[-1] < steps  # each life went on where a former one had been
    assert_same_run(tmp_path / "straight", tmp_path / "killed", steps)


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    stage, net = controlled(STEPS)
    summary = fit(stage, tmp_path)
    before = (tmp_path / "toy" / "metrics.jsonl").read_bytes()
    fresh, other = controlled(STEPS, seed=99)

    def never(batch: Any, clock: Clock) -> Any:
        raise AssertionError("the step was called")

    assert fit(replace(fresh, step=never), tmp_path) == summary
    assert summary["steps"] == STEPS
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert not other.training
    assert fresh.after[0].heard == stage.after[0].heard  # type: ignore[attr-defined]
    assert fresh.stream.position == stage.stream.position  # type: ignore[attr-defined]
    assert (tmp_path / "toy" / "metrics.jsonl").read_bytes() == before


def test_a_finished_stage_without_its_checkpoint_is_refused(tmp_path: Path) -> None:
    fit(changed(), tmp_path)
    checkpoint.shutil.rmtree(tmp_path / "toy" / "step-00000005")
    with pytest.raises(LimbeckError, match="toy is marked as done, but has no checkpoint"):
        fit(changed(), tmp_path)


def changed(**changes: Any) -> Stage:
    return replace(shared_out(1, 5)[0], **changes)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Folders of a stage that is finished (True), and of one that was stopped (False)."""
    folders = {finished: tmp_path_factory.mktemp("other") for finished in (False, True)}
    fit(changed(), folders[True])
    with pytest.raises(Stop):
        fit(changed(after=[stop_at(3)], save_every=1), folders[False])
    return folders


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (changed(steps=6), r"steps: 5 there, 6 now"),
        (changed(seed=7), r"seed: 0 there, 7 now"),
        (changed(optim=Optim(lr=0.5)), r"lr: 0\.3 there, 0\.5 now"),
        (changed(clip=None), r"clip: 1\.0 there, None now"),
        (changed(train={"net": Net(), "head": nn.Linear(1, 1)}), r"trained names: \['net'\] there"),
        (changed(train={"net": nn.Sequential(nn.Linear(6, 8))}), r"only the (stage|checkpoint) has 'net/"),
        (changed(train={"net": nn.Linear(6, 8).to(torch.bfloat16)}), r"only the checkpoint has"),
    ],
)
def test_the_checkpoint_of_another_stage_is_refused(
    others: dict[bool, Path], stage: Stage, message: str, finished: bool
) -> None:
    with pytest.raises(LimbeckError, match=message) as caught:
        fit(stage, others[finished])
    assert "choose another out folder" in str(caught.value)


def test_other_shapes_and_types_are_refused(tmp_path: Path) -> None:
    def stage(net: nn.Module) -> Stage:
        return Stage("toy", lambda b, c: per("row", net(b["x"])), {"net": net}, batches(3), 2)

    fit(stage(nn.Linear(6, 2)), tmp_path)
    with pytest.raises(LimbeckError, match=r"'net/weight' is \(2, 6\) torch.float32 there and \(3, 6\)"):
        fit(stage(nn.Linear(6, 3)), tmp_path)
    with pytest.raises(LimbeckError, match=r"torch.float32 there and \(2, 6\) torch.float64 in the stage"):
        fit(stage(nn.Linear(6, 2).double()), tmp_path)


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fit(changed(after=[stop_at(3)]), tmp_path)
    weights = tmp_path / "toy" / "step-00000002" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(LimbeckError, match=r"weights\.safetensors is not a whole safetensors file"):
        fit(changed(), tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    called: list[int] = []
    stage = shared_out(1, 2)[0]

    def step(batch: Any, clock: Clock) -> Any:
        called.append(clock.step)
        return stage.step(batch, clock)

    with pytest.raises(LimbeckError, match="cannot write"):
        fit(replace(stage, step=step), tmp_path / "file")
    assert called == []


def test_checkpoints_are_written_ten_times_or_as_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    real = checkpoint.Checkpoints.save
    monkeypatch.setattr(
        checkpoint.Checkpoints, "save", lambda self, step, *rest: (saved.append(step), real(self, step, *rest))
    )
    fit(replace(shared_out(1, 20)[0]), tmp_path / "a")
    assert saved == list(range(2, 21, 2))
    saved.clear()
    fit(replace(shared_out(1, 7)[0], save_every=3), tmp_path / "b")
    assert saved == [3, 6, 7]
