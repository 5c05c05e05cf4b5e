"""The adaptive policy makes the choices of DistiLLM's released code, with its counting of steps mended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from limbeck.core.check import LimbeckError
from limbeck.core.terms import Clock
from limbeck.data.policies import Adaptive, Share

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "seqkd-notes" / "adaptive_scheduler.npz")
ACTS = ["data", "written", "replayed"]


@pytest.mark.parametrize("case", [1, 2, 3])
def test_the_released_schedule(case: int) -> None:
    """Every choice, threshold and buffer of 40 micro-batches (seqkd-notes, ``fix_``)."""
    at = lambda name: GOLDEN[f"{case}_{name}"]  # noqa: E731
    heard = iter([at("in_initial_validation_loss"), *at("in_validation_loss")])
    capacity, steps = int(at("hp_capacity")), int(at("hp_total_steps"))
    policy = Adaptive(
        lambda: float(next(heard)),
        period=int(at("hp_eval_interval")),
        capacity=capacity,
        start=float(at("hp_init_threshold")),
        rise=float(at("hp_increment")),
        slack=float(at("hp_loss_eps")),
        replay=("decreasing", "increasing", "constant")[int(at("hp_replay_mode"))],
    )
    policy.fraction = 1 / steps  # of the first step; a stage tells of the others
    kept, seen, chances = 0, [], iter(at("in_uniform"))
    number = at("fix_step")
    for micro, step in enumerate(number):
        generation = policy.share * policy.replay(policy.fraction)
        before, act = policy.share, policy.choose(float(next(chances)), kept)
        kept = min(capacity, kept + int(at("hp_batch_size")) * (act == "written"))
        if micro + 1 == len(number) or number[micro + 1] != step:
            policy({}, Clock(int(step), steps))
        seen.append((before, generation, ACTS.index(act), kept, policy.share, policy.reference))
    names = ("threshold", "generation_threshold", "action", "buffer_size", "threshold_after", "best_loss_after")
    for name, values in zip(names, zip(*seen, strict=True), strict=True):
        np.testing.assert_allclose(values, at(f"fix_{name}"), atol=1e-12, rtol=0, err_msg=name)


def test_a_share_has_to_be_one() -> None:
    with pytest.raises(LimbeckError, match=r"must lie from 0 to 1, but is 1\.5"):
        Share(1.5)
