"""A large vocabulary heard through a small one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Readout, Signals
from limbeck.losses.divergence import jsd
from limbeck.sources.ensemble import mean_source
from limbeck.sources.vocabulary import elsewhere, kept, padded

torch.manual_seed(0)
HIDDEN, WEIGHT, BIAS = torch.randn(2, 5, 4), torch.randn(9, 4), torch.randn(9)
KEEP = [7, 0, 3]
WHERE = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 1, 1, 0]]).bool()
WHOLE = HIDDEN @ WEIGHT.T + BIAS


def reads(batch):
    return Signals(readout=Readout(HIDDEN, WEIGHT, BIAS))


def says(batch):
    return Signals(logits=WHOLE)


@pytest.mark.parametrize("source", [reads, says, mean_source([says])])
def test_kept_columns_in_their_order(source):
    expected = source({}).logits_at(WHERE)[:, KEEP]
    torch.testing.assert_close(kept(source, KEEP)({}).logits_at(WHERE), expected)
    assert kept(source, KEEP)({}).logits_at().shape == (2, 5, 3)


def test_kept_leaves_scale_and_cap():
    capped = lambda batch: Signals(readout=Readout(HIDDEN, WEIGHT, None, scale=0.5, softcap=2.0))  # noqa: E731
    torch.testing.assert_close(kept(capped, KEEP)({}).logits_at(), torch.tanh(HIDDEN @ WEIGHT.T / 4)[..., KEEP] * 2)


@pytest.mark.parametrize("source", [reads, says])
def test_elsewhere_answers_at_the_agreeing_places(source):
    seen = {}

    def listening(batch):
        seen.update(batch)
        return source(batch)

    ours = torch.tensor([[0, 1, 1], [1, 1, 1]]).bool()  # as many per row as WHERE
    batch = {
        "ids": torch.zeros(2, 3),
        "aligned": ours,
        "teacher_ids": torch.ones(2, 5),
        "teacher_mask": torch.ones(2, 5),
    }
    said = elsewhere(kept(listening, KEEP))({**batch, "teacher_aligned": WHERE})
    torch.testing.assert_close(said.logits_at(ours), WHOLE[WHERE][:, KEEP])
    assert seen["ids"] is batch["teacher_ids"]
    assert seen["mask"] is batch["teacher_mask"]
    torch.testing.assert_close(said.own.logits_at(), WHOLE[..., KEEP])
    for other in (None, ~ours):
        with pytest.raises(LimbeckError, match="known only at the places where both cuts agree"):
            said.logits_at(other)


def two_cuts(**more):
    """Three places of ours and their twins."""
    ours = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0]]).bool()
    theirs = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 1, 0]]).bool()
    batch = {"ids": torch.zeros(2, 4), "aligned": ours, "teacher_ids": torch.zeros(2, 5), "teacher_mask": theirs}
    return {**batch, "teacher_aligned": theirs, **more}


def test_elsewhere_answers_at_some_of_the_agreeing_places():
    batch = two_cuts()
    heard = elsewhere(says)(batch)
    for keep in ([True, False, True], [False, True, False], [False] * 3):
        some = batch["aligned"].clone()
        some[batch["aligned"]] = torch.tensor(keep)
        torch.testing.assert_close(heard.logits_at(some), WHOLE[batch["teacher_aligned"]][torch.tensor(keep)])


def test_elsewhere_pairs_by_order_where_asked():
    paired, twin = torch.ones(2, 4).bool(), torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]).bool()
    batch = two_cuts(paired=paired, teacher_paired=twin)
    torch.testing.assert_close(elsewhere(says, on="paired")(batch).logits_at(paired), WHOLE[twin])
    with pytest.raises(LimbeckError, match="known only at the places where both cuts agree"):
        elsewhere(says)(batch).logits_at(paired)


def test_elsewhere_hands_on_all_that_the_other_side_reads():
    seen = {}
    elsewhere(lambda batch: seen.update(batch) or says(batch))(two_cuts(teacher_segment=torch.ones(2, 5)))
    assert set(seen) == {"ids", "mask", "aligned", "segment"}


@pytest.mark.parametrize("source", [reads, says, mean_source([says])])
def test_padded_rows_are_cut_off(source):
    torch.testing.assert_close(padded(source, 7)({}).logits_at(WHERE), source({}).logits_at(WHERE)[:, :7])
    assert torch.equal(padded(says, 9)({}).logits_at(), WHOLE)


@pytest.mark.parametrize("source", [reads, says])
def test_a_head_that_is_too_narrow_is_refused(source):
    with pytest.raises(LimbeckError, match="the model gives 9 logits, but its tokenizer has 10 tokens"):
        padded(source, 10)({})


def test_golden_padded_teacher():
    """The teacher's head has 16 rows, the student's 13: the correct value cuts the teacher, as padded does."""
    arrays = np.load(Path(__file__).parents[1] / "golden" / "kd-objectives-anchors" / "liger_jsd_vocab_mismatch.npz")
    said = {
        side: padded(lambda batch, side=side: Signals(readout=readout_of(arrays, side, batch["bias"])), 13)
        for side in ("student", "teacher")
    }
    where = torch.from_numpy(arrays["in_labels"] != -100)[None]
    for (beta, degrees, _, _, _, bias), expected in zip(arrays["hp_configs"], arrays["fix_soft"], strict=True):
        ours, theirs = (said[side]({"bias": bias}).logits_at(where) for side in ("student", "teacher"))
        assert float(jsd(ours, theirs, float(degrees), float(beta)).mean()) == pytest.approx(float(expected), rel=1e-5)


def readout_of(arrays, side, bias):
    hidden, weight, b = (torch.from_numpy(arrays[f"in_{side}_{name}"]) for name in ("hidden", "weight", "bias"))
    return Readout(hidden[None], weight, b if bias else None)


def test_refusals():
    with pytest.raises(LimbeckError, match="at least two tokens, but got 1"):
        kept(says, [3])
    with pytest.raises(LimbeckError, match=r"elsewhere: needs 'teacher_ids' in the batch, which holds only \['ids'\]"):
        elsewhere(says)({"ids": torch.zeros(1, 1)})
    with pytest.raises(LimbeckError, match="padded: a distribution needs at least two tokens, but got 1"):
        padded(says, 1)
