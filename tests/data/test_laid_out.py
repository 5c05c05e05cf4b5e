"""Conversations that two templates lay out differently."""

import pytest
import torch
from cutters import KINDS, cutter

from limbeck.data.crossed import collate, row
from limbeck.data.laid_out import laid_out

TALK = [("Unde e casa?", "Ana are 🍎 mere.\nȘi pere."), ("北京?", "naïve café — coöperate")]


def one_way(end):
    """``User: ... Bot: ...`` with a line per turn; learned are the answer and what ends it."""
    text, turns, shared = "", [], []
    for asked, said in TALK:
        text += f"User: {asked}\nBot:"
        turns.append((len(text), len(text) + len(said) + len(end)))
        shared.append((len(text), len(text) + len(said)))
        text += said + end
    return text, turns, shared


def other_way(end):
    """Brackets and a preface."""
    text, turns, shared = "(a talk)", [], []
    for asked, said in TALK:
        text += f"[{asked}]("
        turns.append((len(text), len(text) + len(said) + len(end)))
        shared.append((len(text), len(text) + len(said)))
        text += said + end + " "
    return text, turns, shared


@pytest.mark.parametrize("two", KINDS)
def test_answers_are_compared_and_nothing_else(two):
    ours, theirs = cutter("byte level"), cutter(two)
    cuts = [laid_out(ours, *one_way("<|endoftext|>")), laid_out(theirs, *other_way(")"))]
    assert cuts[0].size == cuts[1].size == sum(len(said.encode()) + 3 for _, said in TALK)
    kept = ours.decode([i for i, keep in zip(cuts[0].ids, cuts[0].keep, strict=True) if keep])
    assert kept == "".join(f"{said}<|endoftext|>" for _, said in TALK)
    batch = collate([row(*cuts)])
    assert torch.equal(batch["aligned"].sum(1), batch["teacher_aligned"].sum(1))
    assert not (batch["aligned"] & ~batch["answer"]).any()
    assert not (batch["teacher_aligned"] & ~batch["teacher_answer"]).any()
    share = batch["aligned"].sum() / torch.minimum(batch["answer"].sum(), batch["teacher_answer"].sum())
    assert share > 0.3
    ends = batch["targets"][0][batch["aligned"][0]]
    if two.startswith("byte"):  # the others may join a bracket to a word
        assert int((ends == ours.eos_token_id).sum()) == len(TALK)  # paired with the bracket of the other side


def test_one_layout_in_one_cut_is_aligned_throughout():
    cut = laid_out(cutter("byte level"), *one_way("<|endoftext|>"))
    batch = collate([row(cut, cut)])
    assert torch.equal(batch["aligned"], batch["answer"])
