"""Agreement row by row against plain loops, and intervals against what statistics says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from limbeck.analyses import agreement as module
from limbeck.analyses.agreement import ByRow, agreement, difference, interval
from limbeck.core.batch import next_token_batch
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals


def batches():
    generator = torch.Generator().manual_seed(0)
    found = []
    for rows in (3, 2):
        ids = torch.randint(7, (rows, 6), generator=generator)
        lengths = torch.randint(2, 7, (rows, 1), generator=generator)
        found.append(next_token_batch(ids, torch.arange(6) < lengths))
    return found


def says(seed):
    return lambda batch: Signals(
        logits=torch.randn(*batch["ids"].shape, 7, generator=torch.Generator().manual_seed(seed + len(batch["ids"])))
    )


@pytest.mark.parametrize("portion", [1, 4, 512])
def test_sums_per_row_are_those_of_a_loop(portion, monkeypatch):
    monkeypatch.setattr(module, "POSITIONS", portion)
    found = agreement(says(1), says(2), batches())
    row = 0
    for batch in batches():
        ours, theirs = says(1)(batch).logits.double(), says(2)(batch).logits.double()
        for b in range(len(batch["ids"])):
            places = [t for t in range(6) if batch["answer"][b, t]]
            nll = kl = same = 0.0
            for t in places:
                q, p = ours[b, t].softmax(-1), theirs[b, t].softmax(-1)
                nll -= math.log(q[batch["targets"][b, t]])
                kl += float((p * (p / q).log()).sum())
                same += float(q.argmax() == p.argmax())
            assert found.tokens[row] == len(places)
            assert [found.sums[name][row] for name in ("nll", "kl", "top1")] == pytest.approx([nll, kl, same], abs=1e-5)
            row += 1
    assert found.mean("nll") == pytest.approx(found.sums["nll"].sum() / found.tokens.sum())


def test_a_model_agrees_with_itself():
    found = agreement(says(1), says(1), batches())
    assert found.mean("kl") == pytest.approx(0, abs=1e-7)
    assert found.mean("top1") == 1
    assert set(agreement(says(1), None, batches()).sums) == {"nll"}


def test_rows_without_supervision_count_for_nothing_and_all_of_them_are_refused():
    one, other = batches()
    other["answer"] = torch.zeros_like(other["answer"])
    found = agreement(says(1), says(2), [other, one])
    assert len(found.tokens) == 5
    assert found.mean("kl") == pytest.approx(agreement(says(1), says(2), [one]).mean("kl"))
    with pytest.raises(LimbeckError, match="nothing to measure"):
        agreement(says(1), says(2), [other])


def normal(rows: int, seed: int) -> ByRow:
    return ByRow(np.full(rows, 10), {"kl": 10 * np.random.default_rng(seed).normal(2.0, 0.5, rows)})


def test_the_interval_is_that_of_the_mean_of_rows():
    found = interval(normal(400, 0), "kl")
    assert found.mean == pytest.approx(normal(400, 0).sums["kl"].mean() / 10)
    assert found.half == pytest.approx(1.96 * 0.5 / 20, rel=0.1)
    assert found.low < found.mean < found.high
    assert interval(normal(400, 0), "kl") == found, "seeded"


def test_it_covers_as_often_as_it_says():
    hits = sum(found.low <= 2.0 <= found.high for found in (interval(normal(60, s), "kl", 400) for s in range(200)))
    assert 0.88 < hits / 200 < 0.99


def test_a_paired_difference_is_narrower():
    one = normal(200, 0)
    other = ByRow(one.tokens, {"kl": one.sums["kl"] - 1 + 0.1 * normal(200, 1).sums["kl"]})
    paired = difference(one, other, "kl")
    assert paired.mean == pytest.approx(one.mean("kl") - other.mean("kl"))
    assert paired.half < 0.3 * interval(one, "kl").half
    with pytest.raises(LimbeckError, match="the same rows"):
        difference(one, normal(100, 0), "kl")
