"""Which neighbours share a phrase."""

import pytest
import torch
from tiny_llms import tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from limbeck.core.check import LimbeckError
from limbeck.data.samples import Sample, batch_of
from limbeck.data.spans import Neighbours, phrases


def test_phrases_are_runs_of_words_between_punctuation():
    text = "The old man, who can't swim, went down to the river-side."
    assert [text[a:b] for a, b in phrases(text)] == ["The old man", "who can't swim", "went down to the", "river-side"]
    assert [text[a:b] for a, b in phrases(text, most=2)][:3] == ["The old", "man", "who can't"]
    assert phrases("") == phrases("... !") == []


def test_tokens_belong_to_the_phrase_of_their_first_letter():
    reads = tokenizer()
    found = Neighbours(reads)
    ids = reads("good film, bad book poor song plays")["input_ids"]
    assert reads.convert_ids_to_tokens(ids) == ["good", " film", ",", " bad", " book", " poor", " song", " plays"]
    assert found.spans(ids) == [0, 0, -1, 1, 1, 1, 1, 2]
    assert found.spans([*ids[:2], 1]) == [0, 0, -1], "the end of a text is in no phrase"
    assert found.spans([]) == []


def test_pairs_are_positions_that_predict_two_tokens_of_one_phrase():
    reads = tokenizer()
    prompt, one, two = (reads(text)["input_ids"] for text in ("one two", " good film, bad book", " good"))
    batch = Neighbours(reads)(batch_of([Sample(prompt, [*one, 1]), Sample(prompt, [*two, 1])]))
    # tokens 2.. of the row are predicted at positions 1..: good film | , | bad book | end
    assert batch["pairs"].tolist() == [[False, True, False, False, True, False, False, False], [False] * 8]
    assert batch["pairs"].dtype == torch.bool


def test_another_chunker_may_stand_there():
    reads = tokenizer()
    ids = reads("good film, bad")["input_ids"]
    assert Neighbours(reads, lambda text: [(0, len(text))]).spans(ids) == [0, 0, 0, 0]
    assert Neighbours(reads, lambda text: []).spans(ids) == [-1] * 4


def pieces_of(kind: str) -> tuple[PreTrainedTokenizerFast, list[str]]:
    if kind == "sentencepiece":
        words = ["▁a", "▁good", "▁fil", "m", ",", "▁bad"]
        core = Tokenizer(models.Unigram([(word, -1.0) for word in ["<unk>", *words]], unk_id=0))
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        words = ["a", "good", "fil", "##m", ",", "bad"]
        core = Tokenizer(models.WordPiece({w: i for i, w in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
        core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=core), words


@pytest.mark.parametrize(
    ("kind", "pieces"),
    [("sentencepiece", [" good", " fil", "m", ",", " bad"]), ("wordpiece", [" good", " fil", "m", " ,", " bad"])],
)
def test_pieces_of_other_families_keep_their_spaces(kind, pieces):
    reads, words = pieces_of(kind)
    ids = reads.convert_tokens_to_ids(words[1:])
    found = Neighbours(reads)
    assert [found.piece(token) for token in ids] == pieces
    assert found.spans(ids) == [0, 0, 0, -1, 1]


def test_a_tokenizer_without_letters_is_refused():
    core = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    core.pre_tokenizer = pre_tokenizers.Split("a", "removed")
    with pytest.raises(LimbeckError, match="no token for the letter a"):
        Neighbours(PreTrainedTokenizerFast(tokenizer_object=core))
