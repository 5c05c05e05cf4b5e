"""The training loop: its gradient, what moves, what it says, what it refuses."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_child import Net, Walk, batches, joined, two_masks
from torch import nn

import limbeck.core.fit as loop
from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError
from limbeck.core.feed import Feed
from limbeck.core.fit import fit
from limbeck.core.learn import count_units
from limbeck.core.stage import Optim, Stage
from limbeck.core.terms import Clock, Term, Terms, per

# with a large eps AdamW's step grows with the gradient, so that a wrong scale of the gradient shows in the weights
SCALED = Optim(lr=0.3, eps=1.0, schedule="constant")


def toy(stream: Any, steps: int, **changes: Any) -> tuple[Stage, Net]:
    torch.manual_seed(0)
    net, teacher = Net(), Net()
    stage = Stage("toy", two_masks(net, teacher), {"net": net}, stream, steps, SCALED, frozen={"teacher": teacher})
    return replace(stage, **{"clip": None, "log_every": 1} | changes), net


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("micro", [2, 8])
def test_one_batch_or_many_micro_batches_give_the_same_weights_and_logs(tmp_path: Path, micro: int) -> None:
    parts = batches(3 * 8, rows=1)  # unequal numbers of true entries in both masks
    size = 8 // micro
    stage, whole = toy([joined(parts[i : i + 8]) for i in range(0, 24, 8)], 3)
    fit(stage, tmp_path / "whole")
    stage, split = toy([joined(parts[i : i + size]) for i in range(0, 24, size)], 3, accumulate=micro)
    before = weights(split)
    fit(stage, tmp_path / "split")
    for name, value in whole.named_parameters():
        torch.testing.assert_close(dict(split.named_parameters())[name], value, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(before["inside.weight"], split.inside.weight, atol=1e-2)
    for a, b in zip(metrics(tmp_path / "whole" / "toy"), metrics(tmp_path / "split" / "toy"), strict=True):
        for name in ("loss", "soft", "hard", "size", "grad_norm", "rows"):
            assert a[name] == pytest.approx(b[name], rel=1e-5)


def test_the_gradient_is_that_of_the_means() -> None:
    (batch,) = batches(1, rows=8)
    stage, net = toy([batch], 1)
    torch.manual_seed(0)
    copy, teacher = Net(), Net()
    out = copy(batch["x"])
    soft = ((out - teacher(batch["x"]).detach()) ** 2).sum(-1)[batch["mask"]].mean()
    hard = (out - batch["y"]).abs().sum(-1)[batch["answer"]].mean()
    (0.7 * soft + hard + 0.1 * (out**2).mean()).backward()
    fit(stage)
    for name, value in copy.named_parameters():
        if value.grad is not None:  # AdamW's first step: the gradient over its own size, plus eps
            moved = value - 0.3 * value.grad / (value.grad.abs() + 1.0)
            torch.testing.assert_close(dict(net.named_parameters())[name], moved, atol=1e-6, rtol=1e-5)


def test_callbacks_and_log_get_raw_means(tmp_path: Path) -> None:
    (batch,) = batches(1, rows=8)
    heard: list[tuple[dict[str, float], int]] = []
    stage, net = toy([batch], 2, after=[lambda logs, clock: heard.append((dict(logs), clock.step))])
    teacher = stage.frozen["teacher"]
    with torch.no_grad():
        mean = ((net(batch["x"]) - teacher(batch["x"])) ** 2).sum(-1)[batch["mask"]].mean().item()
        size = (net(batch["x"]) ** 2).mean().item()
        hard = (net(batch["x"]) - batch["y"]).abs().sum(-1)[batch["answer"]].mean().item()
    fit(stage, tmp_path)
    first, step = heard[0]
    assert step == 1
    assert (first["soft"], first["size"], first["hard"]) == pytest.approx((mean, size, hard), rel=1e-5)
    assert first["loss"] == pytest.approx(0.7 * mean + hard + 0.1 * size, rel=1e-5)
    assert {name: metrics(tmp_path / "toy")[0][name] for name in first} == first
    assert [row["rows"] for row in metrics(tmp_path / "toy")] == [8, 16]


def test_only_train_moves_and_the_teacher_stays_bit_for_bit() -> None:
    stage, net = toy(batches(4), 4)
    teacher = stage.frozen["teacher"]
    before, taught = weights(net), weights(teacher)
    fit(stage)
    assert same(weights(teacher), taught)
    assert not teacher.training
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    moved = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in net.named_parameters()} - {"unused.weight", "unused.bias"}
    assert not net.training
    assert all(p.grad is None for p in net.parameters())


def test_parts_of_train_without_gradient_stay() -> None:
    stage, net = toy(batches(4), 4)
    net.inside.requires_grad_(False)
    before = weights(net)
    fit(replace(stage, optim=Optim(lr=0.1, weight_decay=0.5)))
    assert torch.equal(net.inside.weight, before["inside.weight"])
    assert not torch.equal(net.outside.weight, before["outside.weight"])


def test_learning_rate_multipliers_and_schedule() -> None:
    torch.manual_seed(0)
    slow, fast = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
    start = slow.weight.detach().clone(), fast.weight.detach().clone()

    def step(batch: Batch, clock: Clock) -> Terms:
        return per("row", slow(batch["x"]) + fast(batch["x"]))

    optim = Optim(lr=0.1, groups={"fast": 3.0}, warmup=2)
    fit(Stage("s", step, {"slow": slow, "fast": fast}, [{"x": torch.ones(2, 3)}], 3, optim, clip=None))
    # the gradient is constant, so each step of Adam is as long as the rate: 0.05 + 0.1 + 0.1
    torch.testing.assert_close(start[0] - slow.weight, torch.full((1, 3), 0.25), atol=1e-5, rtol=0)
    torch.testing.assert_close(start[1] - fast.weight, torch.full((1, 3), 0.75), atol=1e-5, rtol=0)


def test_weight_decay_spares_vectors() -> None:
    net = nn.Linear(2, 2)
    nn.init.ones_(net.weight)
    nn.init.ones_(net.bias)
    optim = Optim(lr=0.1, weight_decay=0.5, schedule="constant")
    stage = Stage(
        "s", lambda b, c: per("row", net(b["x"]).sum(-1) * 0.0), {"net": net}, [{"x": torch.ones(1, 2)}], 1, optim
    )
    fit(stage)
    torch.testing.assert_close(net.weight, torch.full((2, 2), 0.95))
    torch.testing.assert_close(net.bias, torch.ones(2))


def test_clipping_bounds_the_step() -> None:
    net = nn.Linear(4, 1, bias=False)
    start = net.weight.detach().clone()
    optim = Optim(lr=1.0, eps=1e4, schedule="constant")  # Adam's step is the gradient over 1e4
    stage = Stage("s", lambda b, c: per("row", net(b["x"])), {"net": net}, [{"x": torch.full((1, 4), 10.0)}], 1, optim)
    fit(replace(stage, clip=2.0))
    assert (start - net.weight).norm().item() * 1e4 == pytest.approx(2.0, rel=1e-2)


@pytest.mark.parametrize("masks", [("mask",), ("answer",), ("mask", "answer")])
def test_a_fully_masked_batch_is_finite(masks: tuple[str, ...]) -> None:
    stream = batches(2)
    for batch in stream:
        batch.update({name: torch.zeros_like(batch[name]) for name in masks})
    stage, net = toy(stream, 2)
    assert math.isfinite(fit(stage)["loss"])
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_a_loss_that_is_not_finite_names_stage_step_and_term(tmp_path: Path) -> None:
    stream = batches(4)
    stream[2]["y"][0] = float("nan")
    stage, net = toy(stream, 4, save_every=1)
    with pytest.raises(LimbeckError, match="stage 'toy', step 3: 'hard' is nan"):
        fit(stage, tmp_path)
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert [path.name for path in (tmp_path / "toy").glob("step-*")] == ["step-00000002"]


def test_where_reading_waits_for_the_device_it_is_put_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(toy(batches(6), 6, log_every=3)[0], tmp_path / "at once")
    monkeypatch.setattr(loop, "READ_AT_ONCE", set())
    reads: list[int] = []
    real = loop.read
    monkeypatch.setattr(loop, "read", lambda records, world: reads.append(len(records)) or real(records, world))
    fit(toy(batches(6), 6, log_every=3, save_every=6)[0], tmp_path / "late")
    assert [number for number in reads if number] == [1, 2, 3]
    for a, b in zip(metrics(tmp_path / "at once" / "toy"), metrics(tmp_path / "late" / "toy"), strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    stream = batches(6)
    stream[3]["y"][0] = float("inf")
    with pytest.raises(LimbeckError, match="step 4: 'hard' is inf"):
        fit(toy(stream, 6, log_every=6, save_every=5)[0], tmp_path / "broken")
    assert not list((tmp_path / "broken" / "toy").glob("step-*"))


def test_names_that_the_log_needs_are_refused() -> None:
    net = nn.Linear(2, 1)
    stage = Stage("s", lambda b, c: per("row", net(b["x"]), "lr"), {"net": net}, [{"x": torch.ones(1, 2)}], 1)
    with pytest.raises(LimbeckError, match="a term may not be called 'lr'"):
        fit(stage)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    net = nn.Linear(2, 1)

    def step(batch: Batch, clock: Clock) -> Terms:
        return per("row", (net(batch["x"]) * 0.0).abs().sqrt())  # 0, but its slope is 0 times infinity

    with pytest.raises(LimbeckError, match="step 1: 'grad_norm' is nan"):
        fit(Stage("s", step, {"net": net}, [{"x": torch.ones(1, 2)}], 1))


def test_an_unknown_unit_is_named() -> None:
    net = nn.Linear(2, 1)
    batch = {"x": torch.ones(1, 2), "mask": torch.ones(1, 2, dtype=torch.bool)}
    stage = Stage("s", lambda b, c: per("answr", net(b["x"])), {"net": net}, [batch], 1)
    with pytest.raises(LimbeckError, match=r"stage 's', step 1: .* over 'answr', but .* are \['mask'\]"):
        fit(stage)


def test_a_term_with_two_units_is_refused() -> None:
    net, units = nn.Linear(2, 1), iter(["row", "batch"])
    stage = Stage("s", lambda b, c: per(next(units), net(b["x"])), {"net": net}, [{"x": torch.ones(1, 2)}], 1)
    with pytest.raises(LimbeckError, match="'loss' is averaged over 'row' and over 'batch'"):
        fit(replace(stage, accumulate=2))


def test_a_loss_without_gradient_is_refused() -> None:
    net, other = nn.Linear(2, 1), nn.Linear(2, 1).requires_grad_(False)
    stage = Stage("s", lambda b, c: per("row", other(b["x"])), {"net": net}, [{"x": torch.ones(1, 2)}], 1)
    with pytest.raises(LimbeckError, match="depends on nothing that is trained"):
        fit(stage)


def test_counts_are_of_boolean_tensors_rows_and_batches() -> None:
    first = {
        "ids": torch.ones(2, 3, dtype=torch.long),
        "mask": torch.tensor([[True, True, False], [True, False, False]]),
    }
    second = {"ids": torch.ones(1, 3, dtype=torch.long), "answer": torch.zeros(1, 3, dtype=torch.bool)}
    assert count_units([first, second]) == {"row": 3, "batch": 2, "mask": 3, "answer": 0}


def test_a_unit_that_only_some_batches_have() -> None:
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    a = {"x": torch.randn(2, 2), "a": torch.tensor([True, False])}
    b = {"x": torch.randn(3, 2), "b": torch.tensor([True, True, False])}
    heard: list[dict[str, float]] = []

    def step(batch: Batch, clock: Clock) -> Terms:
        unit = "a" if "a" in batch else "b"
        return Terms({unit: Term(net(batch["x"])[batch[unit]].sum(), unit)})

    with torch.no_grad():
        means = net(a["x"])[a["a"]].mean().item(), net(b["x"])[b["b"]].mean().item()
    fit(Stage("s", step, {"net": net}, [a, b], 1, accumulate=2, after=[lambda logs, clock: heard.append(dict(logs))]))
    assert (heard[0]["a"], heard[0]["b"]) == pytest.approx(means)


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    summary = fit(toy(batches(4), 5)[0])
    assert list(tmp_path.iterdir()) == []
    assert summary["steps"] == 5
    assert summary["rows"] == 20


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    stage, _ = toy(batches(4), 2)
    seed()
    wanted = draws()
    for _ in range(2):  # trained, then skipped
        seed()
        fit(stage, tmp_path)
        assert draws() == wanted


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    def run(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        net = Net(dropout=0.5)
        fit(Stage("s", two_masks(net, Net()), {"net": net}, batches(3), 3, seed=seed))
        return weights(net)

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


def test_rows_are_logged_at_the_first_the_last_and_every_nth_step(tmp_path: Path) -> None:
    fit(toy(batches(4), 11, log_every=4)[0], tmp_path)
    assert [row["step"] for row in metrics(tmp_path / "toy")] == [1, 4, 8, 11]


def test_numbers_that_a_callback_returns_are_logged_with_their_step(tmp_path: Path) -> None:
    def speak(logs: Mapping[str, float], clock: Clock) -> dict[str, float] | None:
        return {"seen": clock.step / 2} if clock.step in (3, 4) else None

    stage, _ = toy(batches(2, rows=4), 8, after=[speak], log_every=4)
    fit(stage, tmp_path)
    rows = metrics(tmp_path / "toy")
    assert [(row["step"], row.get("seen")) for row in rows] == [(1, None), (3, 1.5), (4, 2.0), (8, None)]
    stage, _ = toy(batches(2, rows=4), 2, after=[lambda logs, clock: {"loss": 0.0}])
    with pytest.raises(LimbeckError, match="a callback may not log 'loss'"):
        fit(stage)


def test_a_callback_may_leave_the_model_in_eval_mode() -> None:
    modes: list[bool] = []
    stage, net = toy(batches(4), 3)

    def step(batch: Batch, clock: Clock) -> Terms:
        modes.append(net.training and net.inside.training)
        return stage.step(batch, clock)

    fit(replace(stage, step=step, after=[lambda logs, clock: net.eval()]))
    assert modes == [True] * 3


def test_zero_steps_change_nothing(tmp_path: Path) -> None:
    stage, net = toy(batches(1), 0)
    before = weights(net)
    assert fit(stage, tmp_path)["steps"] == 0
    assert same(weights(net), before)
    assert (tmp_path / "toy" / "done").exists()


def test_bf16_autocast_is_finite() -> None:
    stage, net = toy(batches(4), 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert math.isfinite(fit(stage)["loss"])
    assert net.inside.weight.dtype == torch.float32


def test_a_stream_is_shared_out_and_started_again() -> None:
    stream = [{"n": torch.tensor([number])} for number in range(5)]

    def drawn(rank: int, world: int, accumulate: int) -> list[int]:
        feed = Feed(stream, accumulate, rank, world)
        return [int(batch["n"]) for _ in range(3) for batch in feed.take()]

    assert drawn(0, 1, 2) == [0, 1, 2, 3, 4, 0]
    assert drawn(0, 2, 2) == [0, 2, 4, 1, 3, 0]
    assert drawn(1, 2, 2) == [1, 3, 0, 2, 4, 1]


def test_a_stream_continues_by_its_memory_or_by_drawing_again() -> None:
    for make in (Walk, lambda: batches(5)):
        straight, stopped, resumed = Feed(make(), 2), Feed(make(), 2), Feed(make(), 2)
        wanted = [straight.take() for _ in range(7)]
        for _ in range(4):
            stopped.take()
        resumed.load_state_dict(stopped.state_dict())
        for step in (4, 5, 6):
            for a, b in zip(resumed.take(), wanted[step], strict=True):
                assert torch.equal(a["x"], b["x"])


def test_a_stream_that_ends_for_good_is_refused() -> None:
    def ends() -> Iterator[Batch]:
        yield from batches(3)

    with pytest.raises(LimbeckError, match="step 4: the stream gave no batch after 3 in all"):
        fit(toy(ends(), 5)[0])
    with pytest.raises(LimbeckError, match="gave no batch after 0 in all; it is empty"):
        fit(toy([], 5)[0])
