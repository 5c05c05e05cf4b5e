"""Students by name: from disk, by size, by copying layers; another tokenizer than the teacher's is refused."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from limbeck.core.check import LimbeckError
from limbeck.models.load import load_model
from limbeck.models.tokenizers import check_same_tokenizer
from limbeck.students.layers import shape
from limbeck.students.load import load_student

WORDS = ["[UNK]", "[PAD]", "[MASK]", "[CLS]", "[SEP]", "a", "b", "c", "probe"]
SIZES = {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}


def tokenizer(words=WORDS, lower: bool = False) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if lower else pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_students_are_made_from_their_teacher(bert):
    teacher, tok = load_model(bert, "masked")
    assert shape(load_student("2x8", teacher, tok, "masked")) == (2, 8, 2)
    assert shape(load_student("half", teacher, tok, "masked")) == (2, 8, 2)
    copied = load_student("every-other", teacher, tok, "masked")
    assert shape(copied) == (2, 16, 2)
    assert torch.equal(copied.bert.embeddings.word_embeddings.weight, teacher.bert.embeddings.word_embeddings.weight)
    loaded = load_student(bert, teacher, tok, "masked")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), teacher.parameters(), strict=True))


def test_students_are_in_float32_whatever_the_teacher_is(bert):
    teacher, tok = load_model(bert, "masked", "bfloat16")
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    for name in ("2x8", "half", "every-other"):
        assert {p.dtype for p in load_student(name, teacher, tok, "masked").parameters()} == {torch.float32}


def test_a_student_with_another_tokenizer_is_refused(bert, tmp_path):
    teacher, tok = load_model(bert, "masked")
    teacher.save_pretrained(tmp_path)
    tokenizer([*WORDS[:5], "b", "a", "c", "probe"]).save_pretrained(tmp_path)
    with pytest.raises(LimbeckError, match=r"of which 2 differ \(such as \['a'\]\)"):
        load_student(tmp_path, teacher, tok, "masked")


def test_tokenizers_that_only_split_differently_are_refused():
    check_same_tokenizer(tokenizer(), tokenizer())
    with pytest.raises(LimbeckError, match="split text differently"):
        check_same_tokenizer(tokenizer(), tokenizer(lower=True))


def test_a_single_layer_cannot_be_halved(bert):
    teacher, tok = load_model(bert, "masked")
    single = load_student("1x16", teacher, tok, "masked")
    with pytest.raises(LimbeckError, match="--student every-other: the teacher has a single layer"):
        load_student("every-other", single, tok, "masked")
