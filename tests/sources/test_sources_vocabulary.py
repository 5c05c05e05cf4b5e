"""A large vocabulary heard through a small one."""

import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Readout, Signals
from limbeck.sources.ensemble import mean_source
from limbeck.sources.vocabulary import elsewhere, kept

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
    for other in (None, ~ours):
        with pytest.raises(LimbeckError, match="known only at the places where both cuts agree"):
            said.logits_at(other)


def test_refusals():
    with pytest.raises(LimbeckError, match="at least two tokens, but got 1"):
        kept(says, [3])
    with pytest.raises(LimbeckError, match=r"elsewhere: needs 'teacher_ids' in the batch, which holds only \['ids'\]"):
        elsewhere(says)({"ids": torch.zeros(1, 1)})
