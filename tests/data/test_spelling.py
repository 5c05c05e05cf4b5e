"""What tokens spell, and which of two vocabularies mean the same."""

import copy
import unicodedata
from itertools import permutations

import pytest
from cutters import KINDS, TEXTS, cutter
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from limbeck.core.check import LimbeckError
from limbeck.data.spelling import same_tokens, shared_events, spelling


def pairs(one, two):
    """Events as tokens of both sides."""
    ours, theirs = cutter(one), cutter(two)
    events = shared_events(ours, theirs)
    return {
        tuple(ours.convert_ids_to_tokens(o)): tuple(theirs.convert_ids_to_tokens(t))
        for o, t in zip(events.ours, events.theirs, strict=True)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_spell_the_text(kind):
    """Joined, they are the text as the tokenizer sees it, perhaps behind a space of its own."""
    tokenizer = cutter(kind)
    pieces = spelling(tokenizer).pieces
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer.unk_token_id in ids:
            continue
        spelled = b"".join(pieces[i] for i in ids).decode()
        assert seen(kind, spelled) == seen(kind, text)


def seen(kind, text):
    if kind in ("unigram", "unigram by word"):
        text = unicodedata.normalize("NFKC", text)
    if kind == "byte level, NFC":
        return unicodedata.normalize("NFC", text)
    if kind == "word piece":
        text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return text if kind == "byte level" else "".join(text.split())


def test_every_kind_of_piece():
    assert spelling(cutter("byte level")).pieces[cutter("byte level").convert_tokens_to_ids("Ġar")] == b" ar"
    fallback, pieces = cutter("byte fallback"), spelling(cutter("byte fallback")).pieces
    assert pieces[fallback.convert_tokens_to_ids("<0xE4>")] == b"\xe4"
    assert pieces[fallback.convert_tokens_to_ids("▁")] == b" "
    assert pieces[fallback.unk_token_id] is None
    bert, pieces = cutter("word piece"), spelling(cutter("word piece")).pieces
    assert (pieces[bert.convert_tokens_to_ids("##e")], pieces[bert.convert_tokens_to_ids("ana")]) == (b"e", b" ana")
    assert pieces[bert.mask_token_id] is None
    assert spelling(bert).special[bert.mask_token_id] == "[MASK]"


def test_added_tokens_are_written_as_they_are_and_found_later():
    core = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")
    assert spelling(tokenizer).pieces == [b"a", b"b", None]
    tokenizer.add_tokens(["Ġx"])
    assert spelling(tokenizer).pieces[3] == "Ġx".encode()


@pytest.mark.parametrize("kind", KINDS)
def test_one_tokenizer_shares_every_token_with_itself(kind):
    other = copy.deepcopy(cutter(kind))
    events = shared_events(cutter(kind), other)
    assert same_tokens(cutter(kind), other)
    assert events.ours == events.theirs == [[i] for i in range(len(cutter(kind)))]


@pytest.mark.parametrize(("one", "two"), list(permutations(KINDS, 2)))
def test_events_are_apart_and_the_same_both_ways(one, two):
    there, back = shared_events(cutter(one), cutter(two)), shared_events(cutter(two), cutter(one))
    for side in (there.ours, there.theirs):
        ids = [i for event in side for i in event]
        assert len(ids) == len(set(ids))
        assert all(side)
    assert sorted(zip(there.ours, there.theirs, strict=True)) == sorted(zip(back.theirs, back.ours, strict=True))


def test_same_bytes_are_the_same_event():
    found = pairs("byte level", "byte fallback")
    assert found["Ġ",] == ("<0x20>", "▁")
    assert found["e",] == ("<0x65>", "e")
    assert found["Ċ",] == ("<0x0A>",)
    assert found["<|endoftext|>",] == ("</s>",)  # both end a text
    assert pairs("byte level", "byte level, own space")["Ġar",] == ("Ġar",)


def test_a_tokenizer_that_sees_less_has_several_tokens_of_the_other_in_one_event():
    found = pairs("word piece", "byte level")
    assert {"A", "a"} <= set(found["##a",])
    core = Tokenizer(models.WordLevel({"?": 0, "the": 1, "se": 2}, unk_token="?"))
    core.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])
    ours = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")
    words = ["The", "the", "THE", "șe", "se", " the"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="The"))
    theirs = PreTrainedTokenizerFast(tokenizer_object=core)
    events = shared_events(ours, theirs)
    assert dict(zip(map(tuple, events.ours), events.theirs, strict=True)) == {(1,): [1, 2], (2,): [3, 4]}


def test_a_word_without_a_space_is_the_word_where_nothing_else_spells_it():
    core = Tokenizer(models.WordPiece({"[UNK]": 0, "中": 1, "the": 2, "##the": 3}, unk_token="[UNK]"))
    ours = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    core = Tokenizer(models.WordLevel({"?": 0, "中": 1, "the": 2, " the": 3, " 中": 4}, unk_token="?"))
    theirs = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")
    events = shared_events(ours, theirs)
    assert dict(zip(map(tuple, events.ours), events.theirs, strict=True)) == {(1,): [1, 4], (2,): [3], (3,): [2]}


def test_vocabularies_without_a_common_token_are_refused():
    made = []
    for letters in ("ab", "cd"):
        core = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token=letters[0]))
        made.append(PreTrainedTokenizerFast(tokenizer_object=core, unk_token=letters[0]))
    with pytest.raises(LimbeckError, match="the two tokenizers have 0 of 2 and 2 tokens in common"):
        shared_events(*made)
