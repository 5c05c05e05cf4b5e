"""Conversations that two templates lay out differently."""

import copy
import json

import numpy as np
import pytest
import torch
from chat_tokenizers import BRACKETS, CHATML, MARKED, THINKING, by_bytes, by_pieces
from cutters import KINDS, cutter
from tiny_served import sentencepiece

from limbeck.core.check import LimbeckError
from limbeck.data.chats import as_chat
from limbeck.data.crossed import collate, crossed_batches, row, supervised_rows
from limbeck.data.laid_out import chat_cuts, laid_out
from limbeck.data.pairs import causal_batches

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


CHATS = [
    {"messages": [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
        {"role": "user", "content": "Thanks! And of Spain?"},
        {"role": "assistant", "content": "It is Madrid, of course: 🍎 și două."},
    ]},
    {"messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello", "weight": 0},
        {"role": "user", "content": "北京?"},
        {"role": "assistant", "content": " yes\n\nno "},
    ]},
    {"prompt": "User: ", "completion": "Paris"},
]  # fmt: skip
LAYOUTS = {"chatml": CHATML, "thinking": THINKING, "marked": MARKED, "plain": None}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("other", ["brackets", "plain", "chatml"])
def test_conversations_through_two_templates(layout, other, tmp_path):
    ours = by_bytes(LAYOUTS[layout])
    theirs = {"brackets": by_pieces(BRACKETS), "plain": by_pieces(None), "chatml": cutter("byte level")}[other]
    if other == "chatml":
        theirs = copy.deepcopy(theirs)
        theirs.chat_template = CHATML
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    batch = crossed_batches(data, ours, theirs, 256, 3, seed=2).at(0)
    for prefix, tokenizer in (("", ours), ("teacher_", theirs)):
        plain = causal_batches(data, tokenizer, 256, 3, seed=2).at(0)
        for name, value in plain.items():
            assert torch.equal(batch[prefix + name], value), (prefix, name)
        assert not (batch[f"{prefix}aligned"] & ~batch[f"{prefix}answer"]).any()
    assert torch.equal(batch["aligned"].sum(1), batch["teacher_aligned"].sum(1))
    assert (batch["aligned"].sum(1) >= 2).all()
    share = batch["aligned"].sum() / torch.minimum(batch["answer"].sum(), batch["teacher_answer"].sum())
    assert share > 0.3


def test_an_answer_that_a_template_rewrites_is_learned_but_not_compared():
    shouting = CHATML.replace("message['content']", "message['content'] | upper")
    ours, theirs = by_bytes(CHATML), by_bytes(shouting)
    mine, other = chat_cuts(as_chat(CHATS[0], "here"), ours, theirs)
    assert mine.keep.any()
    assert mine.size == other.size == 0
    assert not row(mine, other).ours.chunk.any()


def test_long_conversations_are_cut_and_rows_without_an_answer_left_out(tmp_path):
    data = tmp_path / "chats.jsonl"
    long = {"messages": [{"role": "user", "content": "hello " * 60}, CHATS[0]["messages"][1]]}
    data.write_text("".join(json.dumps(chat) + "\n" for chat in [*CHATS[:2], long]))
    rows = list(supervised_rows(data, by_bytes(CHATML), by_pieces(BRACKETS), 60))
    assert len(rows) == 2
    assert max(len(side.ids) for pair in rows for side in pair) <= 60
    assert all(pair.ours.chunk.any() for pair in rows)


def talk(*answers):
    turns = [
        {"role": role, "content": text} for said in answers for role, text in (("user", "yes?"), ("assistant", said))
    ]
    return as_chat({"messages": turns}, "here:1")


def test_every_turn_has_an_end_to_compare():
    """After </s> some tokenizers open what follows with an empty piece, which is not the end of the turn."""
    ours, theirs = by_bytes(CHATML), sentencepiece()
    theirs.chat_template = BRACKETS.replace("{{ bos_token }}", "")
    cuts = chat_cuts(talk("no", "hello there", "yes"), ours, theirs)
    assert "</s>▁" in "".join(theirs.convert_ids_to_tokens(cuts[1].ids.tolist()))
    pairs = [
        (cut.ids == tokenizer.eos_token_id) & cut.keep for cut, tokenizer in zip(cuts, (ours, theirs), strict=True)
    ]
    marks = [cut.ends[which] for cut, which in zip(cuts, pairs, strict=True)]
    assert marks[0].tolist() == marks[1].tolist()
    assert len(marks[0]) == 3
    made = row(*cuts)
    assert made.theirs.chunk[np.flatnonzero(pairs[1]) - 1].all()


@pytest.mark.parametrize("answer", ["d", "end", "im", "i", "s"])
def test_an_answer_that_the_mark_behind_it_holds_too(answer):
    ours, theirs = by_bytes(CHATML), by_pieces(BRACKETS)
    made = row(*chat_cuts(talk(answer), ours, theirs))
    assert made.ours.chunk.any()
    batch = collate([made])
    assert int(batch["targets"][0][batch["aligned"][0]][0]) in ours(answer)["input_ids"]


def test_what_is_cut_or_left_out_is_said(tmp_path, capsys):
    short, long = (
        [{"role": "user", "content": asked}, {"role": "assistant", "content": "no"}]
        for asked in ("yes?", "hello there " * 40)
    )
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"messages": one}) for one in (short, long)))
    both = by_bytes(CHATML), by_pieces(BRACKETS)
    assert len(supervised_rows(path, *both, 60)) == 1
    assert (
        "1 of 2 conversations are longer than 60 tokens and cut at their end, and 1 of them left"
        in capsys.readouterr().err
    )
    with pytest.raises(LimbeckError, match="no conversation has an answer of the assistant's within 2 tokens; raise"):
        supervised_rows(path, *both, 2)
