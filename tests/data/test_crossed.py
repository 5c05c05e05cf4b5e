"""Batches with both cuts of a text."""

import json
import unicodedata
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from cutters import KINDS, TEXTS, cutter

from limbeck.core.batch import next_token_batch
from limbeck.core.check import LimbeckError
from limbeck.data.align import Cut, agree, join, mark, silent, words
from limbeck.data.crossed import beside, collate, crossed_batches, row, row_batches, text_rows
from limbeck.data.pairs import pair_batches, read_pairs
from limbeck.data.spelling import spelling
from limbeck.data.stream import lm_batches

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "kd-objectives-anchors" / "gold_alignment.npz")
PAIRS = list(permutations(KINDS, 2))


def text_of(tokenizer, ids):
    """What ids spell, as all tokenizers see it."""
    spelled = b"".join(spelling(tokenizer).pieces[i] or b"" for i in ids).decode(errors="replace")
    plain = unicodedata.normalize("NFKD", spelled).casefold()
    return "".join(c for c in plain if not c.isspace() and unicodedata.category(c) != "Mn")


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_chunks_spell_the_same_text_and_begin_where_both_have_read_the_same(one, two):
    ours, theirs = cutter(one), cutter(two)
    rows = list(text_rows(TEXTS * 2, ours, theirs, 40))
    batch = collate(rows)
    assert batch["ids"].shape[1] <= 40
    assert batch["teacher_ids"].shape[1] <= 40
    for i in range(len(rows)):
        starts = [batch[f"{side}chunk"][i][batch[f"{side}aligned"][i]].tolist() for side in ("", "teacher_")]
        assert starts[0] == starts[1] == sorted(starts[0])
        for number in starts[0]:
            targets = [
                batch[f"{side}targets"][i][batch[f"{side}chunk"][i] == number].tolist() for side in ("", "teacher_")
            ]
            if ours.unk_token_id in targets[0] or theirs.unk_token_id in targets[1]:
                continue
            spelled = [text_of(t, ids) for t, ids in zip((ours, theirs), targets, strict=True)]
            assert spelled[0] == spelled[1] or "\ufffd" in "".join(spelled)  # a chunk may part a character
            before = [
                text_of(t, side[i][: int((chunk[i] == number).nonzero()[0]) + 1])
                for t, side, chunk in (
                    (ours, batch["ids"], batch["chunk"]),
                    (theirs, batch["teacher_ids"], batch["teacher_chunk"]),
                )
            ]
            assert before[0][-4:] == before[1][-4:] or "\ufffd" in "".join(before) or i


@pytest.mark.parametrize("kind", KINDS)
def test_one_tokenizer_gives_the_windows_of_lm_batches(kind):
    """Every place is aligned, and every chunk is one token."""
    tokenizer = cutter(kind)
    plain = lm_batches(TEXTS * 3, tokenizer, 24, 4, seed=1)
    crossed = row_batches(list(text_rows(TEXTS * 3, tokenizer, tokenizer, 24)), 4, seed=1)
    for _ in range(4):
        one, two = next(iter(plain)), next(iter(crossed))
        for name, value in one.items():
            assert torch.equal(two[name], value)
            assert torch.equal(two[f"teacher_{name}"], value)
        for name in ("aligned", "teacher_aligned", "paired", "teacher_paired"):
            assert torch.equal(two[name], one["answer"])
        assert (two["chunk"][two["answer"]].diff() != 0).all()


def test_windows_hold_the_corpus_in_order():
    ours, theirs = cutter("byte level"), cutter("unigram")
    rows = list(text_rows(TEXTS * 3, ours, theirs, 30))
    whole = ours.decode(np.concatenate([r.ours.ids for r in rows]))
    assert whole == "<|endoftext|>".join([*TEXTS * 3, ""])[: len(whole)]
    assert len(whole) > 0.9 * sum(map(len, TEXTS * 3))


def test_golden_groups():
    """Chunks are the groups of a public walk over byte ends; a rest that does not end alike is in none."""
    for name in range(len(GOLDEN["in_student_ends"])):
        sides = [GOLDEN[f"in_{side}_ends"][name] for side in ("student", "teacher")]
        cuts = [
            Cut(np.arange(len(e) + 1), np.concatenate([[0], e]), np.ones(len(e) + 1, bool), 0) for e in map(trim, sides)
        ]
        found = row(*cuts)
        last = len(agree(*cuts)) - 1
        for side, made in zip(("student", "teacher"), found, strict=True):
            group = trim(GOLDEN[f"out_group_of_{side}"][name] + 1)
            expected = np.where(group > last, 0, group)
            assert made.chunk[:-1].tolist() == expected.tolist()


def trim(values):
    return values[: int((values > 0).sum())]


def test_a_chunk_counts_if_all_of_it_is_supervised():
    ours, theirs = cutter("byte level"), cutter("unigram")
    made = [words(t, "Ana are mere") for t in (ours, theirs)]
    all_of_it = row(*(join([silent([4]), cut]) for cut in made))
    assert set(all_of_it.ours.chunk) == {*range(int(all_of_it.ours.chunk.max()) + 1)}
    made[1].keep[-1] = False
    less = row(*(join([silent([4]), cut]) for cut in made))
    assert set(all_of_it.ours.chunk) - set(less.ours.chunk) == {all_of_it.theirs.chunk[-2]}
    assert set(less.ours.chunk) == set(less.theirs.chunk)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [
    {"prompt": "Q: 北京?", "completion": "Ana are mere și pere."},
    {"prompt": "A longer prompt that\nhas lines", "completion": " 🍎 in front"},
    {"prompt": "x", "completion": "two\nlines"},
]


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_completions_are_compared_behind_each_side_s_own_prompt(one, two, tmp_path):
    ours, theirs = cutter(one), cutter(two)
    data = write(tmp_path / "pairs.jsonl", ROWS)
    batch = crossed_batches(data, ours, theirs, 64, 3, seed=5).at(0)
    for name, tokenizer, side in (("", ours, 0), ("teacher_", theirs, 1)):
        plain = pair_batches(read_pairs(data, tokenizer, 64), 3, seed=5).at(0)
        for key, value in plain.items():
            assert torch.equal(batch[name + key], value), (key, side)
        assert not (batch[f"{name}aligned"] & ~batch[f"{name}answer"]).any()
    assert (batch["aligned"].sum(1) == batch["teacher_aligned"].sum(1)).all()
    assert (batch["paired"].sum(1) == batch["teacher_paired"].sum(1)).all()
    assert (batch["paired"].sum(1) == torch.minimum(batch["answer"].sum(1), batch["teacher_answer"].sum(1))).all()
    assert (batch["aligned"].sum(1) >= 1).all()


def test_the_beginning_of_an_answer_is_compared_unless_one_side_puts_a_space_there(tmp_path):
    data = write(tmp_path / "pairs.jsonl", ROWS[:1])
    for other, first in (("byte level, NFC", True), ("byte level, own space", False)):
        batch = crossed_batches(data, cutter("byte level"), cutter(other), 64, 1).at(0)
        assert bool(batch["aligned"][0][batch["answer"][0]][0]) is first


def test_both_ends_of_text_are_one_chunk(tmp_path):
    ours, theirs = cutter("byte level"), cutter("byte fallback")
    batch = crossed_batches(write(tmp_path / "pairs.jsonl", ROWS[2:]), ours, theirs, 64, 1).at(0)
    last = [batch[f"{s}targets"][0][batch[f"{s}aligned"][0]].tolist()[-1] for s in ("", "teacher_")]
    assert last == [ours.eos_token_id, theirs.eos_token_id]


def test_the_student_still_learns_its_end_if_the_teacher_has_none(tmp_path):
    ours, theirs = cutter("byte level"), cutter("word piece")
    assert theirs.eos_token_id is None
    batch = crossed_batches(write(tmp_path / "pairs.jsonl", ROWS[2:]), ours, theirs, 64, 1).at(0)
    assert batch["targets"][0][batch["answer"][0]].tolist()[-1] == ours.eos_token_id
    assert batch["targets"][0][batch["aligned"][0]].tolist()[-1] != ours.eos_token_id


def test_beside_another_s_batch():
    ours, theirs = cutter("byte level"), cutter("unigram")
    rows = [row(*(join([silent([1]), words(t, text), mark([0])]) for t in (ours, theirs))) for text in TEXTS[:2]]
    ids = torch.zeros(2, 90, dtype=torch.int64)
    batch = beside(next_token_batch(ids, ids == 0), rows)
    assert batch["aligned"].shape == batch["chunk"].shape == (2, 90)
    alone = collate(rows)["aligned"]
    assert torch.equal(batch["aligned"][:, : alone.shape[1]], alone)


def test_refusals(tmp_path):
    empty = tmp_path / "x.txt"
    empty.write_text("🍎\n")
    with pytest.raises(LimbeckError, match="two cuts of one text have to read the same, but one ends at byte 3"):
        row(words(cutter("byte level"), "a"), words(cutter("byte level"), "ab"))
    with pytest.raises(LimbeckError, match="cut agree nowhere in this text"):
        crossed_batches(empty, cutter("byte level"), cutter("unigram"), 1, 1)
    with pytest.raises(LimbeckError, match="holds no text"):
        list(text_rows([], cutter("byte level"), cutter("unigram"), 8))
