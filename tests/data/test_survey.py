"""How far two tokenizers agree, counted by hand."""

import pytest
from cutters import TEXTS, cutter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from limbeck.core.check import LimbeckError
from limbeck.data.survey import survey


def byte_level(merges):
    pieces = [*"abcd", *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_counts_by_hand():
    """``abcda``: ab c da against a bc d a; ``cc`` is cut alike."""
    ours, theirs = byte_level([("a", "b"), ("d", "a")]), byte_level([("b", "c")])
    found = survey(["abcda", "cc"], ours, theirs)
    assert (found.bytes, found.tokens, found.their_tokens) == (7, 5, 6)
    assert found.same_tokens == pytest.approx(2 / 5)  # c and c
    assert found.same_bytes == pytest.approx(2 / 7)
    assert found.places == pytest.approx(4 / 5)  # before ab, da, c, c; before the first c only we have read the same
    assert found.sayable == pytest.approx(2 / 4)  # ab and da are none of theirs
    assert found.events == 4
    assert sorted(found.examples) == [("abc", "ab c", "a bc"), ("da", "da", "d a")]
    assert dict(found.rows())["bytes in tokens that are the same on both sides"] == "28.6%"


def test_one_tokenizer_agrees_everywhere():
    for kind in ("byte level", "unigram", "word piece"):
        found = survey(TEXTS, cutter(kind), cutter(kind))
        assert (found.same_tokens, found.places, found.sayable, found.examples) == (1.0, 1.0, 1.0, [])
    assert survey(TEXTS, cutter("byte level"), cutter("byte level")).same_bytes == 1.0


def test_examples_are_the_commonest():
    found = survey(TEXTS * 3, cutter("byte level"), cutter("unigram"), most=3)
    assert len(found.examples) == 3
    assert 0 < found.same_tokens < found.places < 1


def test_no_text():
    with pytest.raises(LimbeckError, match="there is no text to survey"):
        survey([""], cutter("byte level"), cutter("unigram"))
