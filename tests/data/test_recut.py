"""One text, two cuts: where they agree."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from limbeck.core.check import LimbeckError
from limbeck.data.recut import recut_batches, recuts

LONG = {
    "<pad>": 0,
    "<s>": 1,
    "</s>": 2,
    "<mask>": 3,
    "<unk>": 4,
    "ab": 5,
    "##c": 6,
    "a": 7,
    "##b": 8,
    "d": 9,
    "##e": 10,
    "de": 11,
}
SHORT = {token: i for i, token in enumerate(token for token in LONG if token not in ("ab", "de"))}


def cutter(vocab, ends=True, mask=True):
    """Greedy pieces with a token at the beginning and one at the end."""
    backend = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        pairs = [("<s>", vocab["<s>"]), ("</s>", vocab["</s>"])]
        backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=pairs)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special, **({"mask_token": "<mask>"} if mask else {}))


OURS, THEIRS = cutter(SHORT), cutter(LONG)


def test_places_that_end_alike_predict_the_same_text():
    row = next(recuts(["abc de c"], OURS, THEIRS, 32, masked=False))
    # ours: <s> a ##b ##c d ##e <unk> </s>, theirs: <s> ab ##c de <unk> </s>
    assert OURS.convert_ids_to_tokens(row.ids) == ["<s>", "a", "##b", "##c", "d", "##e", "<unk>", "</s>"]
    assert row.places == [(0, 0), (2, 1), (3, 2), (5, 3), (6, 4)]
    bare = next(recuts(["abc de"], cutter(SHORT, ends=False), cutter(LONG, ends=False), 32, masked=False))
    assert bare.places == [(1, 0), (2, 1)]  # the last token predicts nothing


def test_a_part_of_a_character_is_not_the_character():
    """A token that ends within a character comes from all of it, but has not read it."""
    apart, whole = byte_level([("¶", "Ð"), ("¶Ð", "¶")]), byte_level([("Ð", "¶")])
    row = next(recuts(["жжx"], apart, whole, 32, masked=False))
    assert apart.convert_ids_to_tokens(row.ids) == ["Ð", "¶Ð¶", "x"]
    assert whole.convert_ids_to_tokens(row.their_ids) == ["Ð¶", "Ð¶", "x"]
    assert row.places == [(1, 1)]


def byte_level(merges):
    """Bytes, and what they are merged into."""
    pieces = ["Ð", "¶", "x", *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_masked_places_are_the_same_token_on_both_sides():
    row = next(recuts(["abc de a"], OURS, THEIRS, 32, masked=True))
    assert row.places == [(3, 2), (6, 4)]  # ##c and a, not the pieces of ab and de


def test_texts_cut_alike_are_left_out():
    assert [row.ids for row in recuts(["a", "d c", "abc"], OURS, THEIRS, 32, masked=False)] == [[1, 6, 7, 5, 2]]
    with pytest.raises(LimbeckError, match="every text is cut as before"):
        recut_batches(["a", "d c"], OURS, THEIRS, 32, 2)
    with pytest.raises(LimbeckError, match="needs a tokenizer with a mask token"):
        recut_batches(["abc"], cutter(SHORT, mask=False), THEIRS, 32, 2, masked=True)


@pytest.mark.parametrize("masked", [False, True])
def test_batches_hold_both_sides(masked):
    texts = ["abc de a a", "de a", "abc", "a de a"]
    stream = recut_batches(texts, OURS, THEIRS, 32, 4, seed=1, masked=masked)
    again = recut_batches(texts, OURS, THEIRS, 32, 4, seed=1, masked=masked)
    for _ in range(5):
        batch, same = next(iter(stream)), next(iter(again))
        assert all((batch[name] == same[name]).all() for name in batch)
        assert (batch["aligned"].sum(1) == batch["teacher_aligned"].sum(1)).all()
        assert (batch["aligned"].sum(1) >= 1).all()
        assert not (batch["aligned"] & ~batch["mask"]).any()
        assert batch["ids"].shape == batch["mask"].shape != batch["teacher_ids"].shape
        if masked:
            assert (batch["ids"][batch["aligned"]] == SHORT["<mask>"]).all()
            assert (batch["teacher_ids"][batch["teacher_aligned"]] == LONG["<mask>"]).all()
        else:
            assert (batch["ids"] != SHORT["<mask>"]).all()
    assert recut_batches(texts, OURS, THEIRS, 32, 2, most=3).size == 3
