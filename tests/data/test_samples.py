"""Rows out of batches and back."""

import pytest
import torch

from limbeck.core.batch import next_token_batch
from limbeck.core.check import LimbeckError
from limbeck.data.pairs import Pair, pair_batches
from limbeck.data.samples import Sample, batch_of, samples_of

ROWS = [Sample([5, 6], [7, 8, 9]), Sample([4], [3]), Sample([1, 2, 3], [4, 5])]


def test_a_batch_and_its_rows_are_the_same_thing():
    assert samples_of(batch_of(ROWS)) == ROWS


def test_the_batch_is_that_of_pairs():
    pairs = [Pair(row.prompt, row.completion) for row in ROWS]
    (wanted,) = pair_batches(pairs, 3, seed=0).take(1)
    order = [pairs.index(Pair(row.prompt, row.completion)) for row in samples_of(wanted)]
    made = batch_of([ROWS[i] for i in order])
    assert made.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(made[name], value), name


def test_padding_may_stand_on_either_side():
    batch = batch_of(ROWS)
    ids, mask = batch["ids"][1:2].roll(3, 1), batch["mask"][1:2].roll(3, 1)
    left = next_token_batch(ids, mask, torch.tensor([[False, False, False, False, True]]))
    assert samples_of(left) == [Sample([4], [3])]


def test_of_a_conversation_the_last_turn_is_the_completion():
    ids = torch.tensor([[10, 11, 12, 13, 14, 15]])
    keep = torch.tensor([[False, True, False, False, True, True]])
    assert samples_of(next_token_batch(ids, torch.ones_like(ids), keep)) == [Sample([10, 11, 12, 13], [14, 15])]


def test_running_text_keeps_one_token_of_prompt_and_bare_prompts_have_no_completion():
    ids = torch.tensor([[10, 11, 12]])
    assert samples_of(next_token_batch(ids, torch.ones_like(ids))) == [Sample([10], [11, 12])]
    assert samples_of(next_token_batch(ids, torch.ones_like(ids), torch.zeros_like(ids))) == [Sample([10, 11, 12], [])]


def test_an_encoder_decoder_keeps_its_source():
    rows = [Sample([0], [4, 5], [9, 8, 7]), Sample([0], [6], [3])]
    batch = batch_of(rows)
    assert batch["encoder_ids"].tolist() == [[9, 8, 7], [3, 0, 0]]
    assert batch["encoder_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert samples_of(batch) == rows


def test_notes_stand_where_their_token_is_predicted():
    rows = [
        Sample([5, 6], [7, 8], notes={"old": [0.5, 0.25], "task": 3}),
        Sample([4], [3], notes={"old": [2.0], "task": 1}),
    ]
    batch = batch_of(rows)
    assert batch["old"].tolist() == [[0.0, 0.5, 0.25, 0.0], [2.0, 0.0, 0.0, 0.0]]
    assert batch["task"].tolist() == [3, 1]
    assert [row.notes for row in samples_of(batch)] == [{"task": 3}, {"task": 1}]
    assert Sample.of(rows[0].state()) == rows[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("answer"), "a batch needs 'answer'"),
        (lambda b: b.update(segment=b["ids"]), "these rows are packed; turn packing off"),
    ],
)
def test_batches_without_one_prompt_per_row_are_refused(change, message):
    batch = batch_of(ROWS)
    change(batch)
    with pytest.raises(LimbeckError, match=message):
        samples_of(batch)


def test_notes_that_do_not_fit_are_refused():
    with pytest.raises(LimbeckError, match="some rows have the note 'old'"):
        batch_of([ROWS[0].noted(old=1.0), ROWS[1]])
    with pytest.raises(LimbeckError, match="has 1 values for 3 tokens"):
        batch_of([ROWS[0].noted(old=[1.0])])
    with pytest.raises(LimbeckError, match="at least one row"):
        batch_of([])
