"""Prompts with completions, and running text, as batches for causal distillation."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from limbeck.core.batch import IGNORE
from limbeck.core.check import LimbeckError
from limbeck.data.held import hold_out
from limbeck.data.pairs import causal_batches, has_ids, has_pairs, pair_batches, read_ids, read_pairs, seq2seq_batches
from limbeck.data.stream import Batches


@pytest.fixture(scope="module")
def tokenizer():
    words = ["[UNK]", "[END]", *"abcdefgh"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="[END]")


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_only_the_completion_is_supervised(tokenizer, tmp_path):
    path = write(tmp_path / "d.jsonl", {"prompt": "a b c", "completion": "d e"}, {"prompt": "f", "completion": "g"})
    (batch,) = causal_batches(path, tokenizer, 8, batch=2).take(1)
    rows = {tuple(row) for row in batch["ids"].tolist()}
    assert rows == {(2, 3, 4, 5, 6, 1), (7, 8, 1, 0, 0, 0)}
    for ids, targets in zip(batch["ids"].tolist(), batch["targets"].tolist(), strict=True):
        wanted = [IGNORE, IGNORE, 5, 6, 1, IGNORE] if ids[0] == 2 else [8, 1, IGNORE, IGNORE, IGNORE, IGNORE]
        assert targets == wanted
    assert batch["answer"].sum() == 5
    assert batch["mask"].sum() == 9


def test_a_long_prompt_loses_its_beginning(tokenizer, tmp_path):
    path = write(tmp_path / "d.jsonl", {"prompt": "a b c d e", "completion": "f g"})
    (pair,) = read_pairs(path, tokenizer, 5)
    assert (pair.prompt, pair.completion) == ([5, 6], [7, 8, 1])


def test_running_text_is_packed(tokenizer, tmp_path):
    path = write(tmp_path / "d.jsonl", {"text": "a b c"}, {"text": "d e"})
    assert not has_pairs(path)
    (batch,) = causal_batches(path, tokenizer, 7, batch=1).take(1)
    assert batch["ids"].tolist() == [[2, 3, 4, 1, 5, 6, 1]]
    assert batch["answer"].sum() == 6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, r"d.jsonl:2: the field 'completion' is missing"),
        ({"prompt": "a", "completion": " "}, r"d.jsonl:2: the completion is empty"),
        ({"prompt": "", "completion": "b"}, r"d.jsonl:2: the prompt is empty"),
        ({"prompt": "a", "completion": "a b c d e f"}, r"d.jsonl:2: the completion has 7 tokens, no room"),
        ({"prompt": 3, "completion": "a"}, r"d.jsonl:2: the field 'prompt' must be a string"),
    ],
)
def test_bad_rows_are_named(tokenizer, tmp_path, row, message):
    path = write(tmp_path / "d.jsonl", {"prompt": "a", "completion": "b"}, row)
    with pytest.raises(LimbeckError, match=message):
        causal_batches(path, tokenizer, 7, batch=1)


ASKED, SAID = {"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}


def test_conversations_and_pairs_may_stand_in_one_file(tokenizer, tmp_path, capsys):
    path = write(tmp_path / "d.jsonl", {"messages": [ASKED, SAID]}, {"prompt": "a", "completion": "e"})
    assert has_pairs(path)
    layout = "User:\na b\n\nAssistant:\n"
    assert read_pairs(path, tokenizer, 32)[0] == (tokenizer(layout, add_special_tokens=False)["input_ids"], [4, 5, 1])
    capsys.readouterr()
    tokenizer.chat_template = None
    (batch,) = causal_batches(path, tokenizer, 32, batch=2).take(1)
    supervised = {tuple(t for t in row if t != IGNORE) for row in batch["targets"].tolist()}
    assert supervised == {(4, 5, 1), (6, 1)}
    said = capsys.readouterr().err
    assert "d.jsonl: the tokenizer has no chat template" in said
    assert "prompts and completions stand as they are" in said
    causal_batches(path, tokenizer, 32, batch=2)
    assert "has no chat template" not in capsys.readouterr().err


def test_long_conversations_are_cut_at_their_end_and_it_is_said(tokenizer, tmp_path, capsys):
    late = {"role": "user", "content": "a b c d e f g h a b c d"}
    rows = [{"messages": [ASKED, SAID]}, {"messages": [ASKED, SAID, ASKED, SAID]}, {"messages": [late, SAID]}]
    path = write(tmp_path / "d.jsonl", *rows)
    stream = causal_batches(path, tokenizer, 14, batch=2)
    assert stream.size == 2
    assert max(one.size for one in stream.rows) <= 14
    said = capsys.readouterr().err
    assert "2 of 3 conversations are longer than 14 tokens and cut at their end, and 1 of them left out" in said
    with pytest.raises(LimbeckError, match=r"d.jsonl: no conversation has an answer of the assistant's within 4 tok"):
        causal_batches(path, tokenizer, 4, batch=1)


def test_rows_of_no_known_form_are_named(tokenizer, tmp_path):
    path = write(tmp_path / "d.jsonl", {"instruction": "a", "output": "b"})
    with pytest.raises(LimbeckError, match=r"d.jsonl:1: expected 'messages', .* but the row has 'instruction', 'outp"):
        causal_batches(path, tokenizer, 8, batch=1)
    path = write(tmp_path / "d.jsonl", {"messages": [ASKED, SAID]}, {"text": "a"})
    with pytest.raises(LimbeckError, match=r"d.jsonl:2: the field 'prompt' is missing"):
        causal_batches(path, tokenizer, 8, batch=1)


def test_pairs_for_an_encoder_decoder(tokenizer, tmp_path):
    path = write(tmp_path / "d.jsonl", {"prompt": "a b c", "completion": "d e"}, {"prompt": "f", "completion": "g"})
    (batch,) = seq2seq_batches(path, tokenizer, 4, batch=2, start=9).take(1)
    names = ("encoder_ids", "ids", "targets")
    rows = {tuple(map(tuple, row)) for row in zip(*(batch[k].tolist() for k in names), strict=True)}
    assert rows == {
        ((2, 3, 4), (9, 5, 6, 1), (5, 6, 1, IGNORE)),
        ((7, 0, 0), (9, 8, 1, 0), (8, 1, IGNORE, IGNORE)),
    }
    assert batch["encoder_mask"].sum() == 4
    path = write(tmp_path / "d.jsonl", {"messages": [ASKED, SAID]})
    with pytest.raises(LimbeckError, match=r"d.jsonl:1: an encoder-decoder reads 'prompt' and 'completion'"):
        seq2seq_batches(path, tokenizer, 4, batch=1, start=9)


def test_pairs_as_batches(tokenizer, tmp_path):
    path = write(tmp_path / "d.jsonl", {"prompt": "a b c", "completion": "d e"})
    (batch,) = pair_batches(read_pairs(path, tokenizer, 8), batch=1).take(1)
    assert batch["answer"].tolist() == [[False, False, True, True, True, False]]


def numbered(rows: int, batch: int) -> Batches:
    return Batches(list(range(rows)), lambda rows: {"rows": rows}, batch, seed=3)


def test_held_out_rows_are_never_trained_on():
    split = hold_out(numbered(100, 4))
    held = [row for batch in split.batches for row in batch["rows"]]
    trained = {row for batch in split.stream.take(60) for row in batch["rows"]}
    assert split.held_out
    assert held == [96, 97, 98, 99]
    assert trained == set(range(96))


def test_rows_of_like_size_stay_together_in_what_is_trained_on():
    rows = [[0] * (1 + 9 * (i % 2)) for i in range(1100)]
    stream = Batches(rows, lambda rows: {"sizes": [len(row) for row in rows]}, 8, size_of=len)
    mixed = [len(set(batch["sizes"])) > 1 for batch in hold_out(stream).stream.take(60)]
    assert sum(mixed) <= 1


def test_the_held_part_is_bounded():
    assert len(hold_out(numbered(10_000, 2)).batches) == 16
    assert len(hold_out(numbered(16, 4)).batches) == 1


def test_too_little_data_is_measured_where_it_is_trained():
    split = hold_out(numbered(9, 4))
    assert (split.held_out, split.name) == (False, "training_rows")
    assert [row for batch in split.batches for row in batch["rows"]] == list(range(8))
    assert {row for batch in split.stream.take(9) for row in batch["rows"]} == set(range(9))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ids": [1, 2, 3], "keep": [1, 2]}, r"keep: expected runs \[begin, end\) within the row's 3 tokens, .* 1$"),
        ({"ids": [1, 2, 3], "keep": [[1, 4]]}, r"within the row's 3 tokens, but it holds \[1, 4\]"),
        ({"ids": ["a", 2], "keep": [[1, 2]]}, "expected token ids, whole numbers from 0 on, but it holds 'a'"),
        ({"ids": [1, -2], "keep": [[1, 2]]}, "expected token ids, whole numbers from 0 on, but it holds -2"),
    ],
)
def test_rows_of_ids_that_are_none(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(LimbeckError, match=rf"rows.jsonl:1: .*{message}"):
        read_ids(path, 8)


def test_a_text_with_an_id_of_its_own_is_a_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "some words", "ids": [7]}))
    assert not has_ids(path)
