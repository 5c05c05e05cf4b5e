"""Tokenizers cut down through their JSON: golden vectors, closures, numbering, every wrapper class."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    MBartTokenizer,
    PreTrainedTokenizerFast,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

from limbeck.core.check import LimbeckError
from limbeck.students.tokenizers import backend_state, closure, derivation, essential_ids, token_ids, trim_tokenizer
from limbeck.students.vocabulary import count_tokens, frequent_tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "vocab-trim"
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
BERT = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "unk", "pad", "mask")}
KINDS = {"unigram": SPECIALS, "wordpiece": BERT, "bpe": SPECIALS}
CASES = [(kind, case) for kind in KINDS for case in ("full", "topk", "tied")]


def golden(kind):
    """The golden arrays and tokenizer of one kind."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(GOLDEN / f"{kind}_tokenizer.json"), **KINDS[kind])
    return np.load(GOLDEN / f"{kind}.npz"), tokenizer


def rows(flat, offsets):
    return [flat[a:b].tolist() for a, b in pairwise(offsets)]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_golden_counts_and_kept_ids(kind, case):
    arrays, tokenizer = golden(kind)
    counts = count_tokens(tokenizer, arrays["corpus"].tolist(), chunk=7)
    assert [counts.get(i, 0) for i in range(len(tokenizer))] == arrays[f"{case}_counts"].tolist()
    size = int(arrays[f"{case}_k"])
    keep = frequent_tokens(tokenizer, arrays["corpus"].tolist(), None if size < 0 else size)
    assert keep == arrays[f"{case}_kept"].tolist()


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_golden_order_tokens_and_encodings(kind, case):
    arrays, tokenizer = golden(kind)
    small, order = trim_tokenizer(tokenizer, arrays[f"{case}_kept"].tolist(), alphabet=False)
    assert order == arrays[f"{case}_order"].tolist()
    ids = small.get_vocab()
    assert sorted(ids, key=ids.get) == arrays[f"{case}_tokens"].tolist()
    texts = arrays["eval"].tolist()
    assert small(texts)["input_ids"] == rows(arrays[f"{case}_after_ids"], arrays[f"{case}_after_offsets"])


@pytest.mark.parametrize(("kind", "case"), CASES)
@pytest.mark.parametrize("alphabet", [True, False])
def test_covered_texts_are_cut_as_before(kind, case, alphabet):
    arrays, tokenizer = golden(kind)
    small, order = trim_tokenizer(tokenizer, arrays[f"{case}_kept"].tolist(), alphabet)
    before = rows(arrays[f"{case}_before_ids"], arrays[f"{case}_before_offsets"])
    covered = arrays[f"{case}_covered"]
    assert covered.sum() >= 8
    for text, ids, whole in zip(arrays["eval"].tolist(), before, covered, strict=True):
        if whole:
            assert [order[i] for i in small(text)["input_ids"]] == ids


def test_without_the_closure_bpe_cuts_covered_texts_anew():
    """The reason for the closure: with the merges of kept pieces alone, kept pieces are not reached."""
    arrays, tokenizer = golden("bpe")
    state, keep = backend_state(tokenizer), set(arrays["topk_kept"].tolist())
    assert len(keep) == 69
    assert len(closure(state, keep)) == 88
    assert closure(state, closure(state, keep)) == closure(state, keep)


# --- tokenizers of every make, from a corpus that is made up here

SYLLABLES = ["ka", "lo", "mi", "ne", "ru", "ști", "țu", "bar", "den", "fol", "gri", "hum"]


def sentences(seed, n=120):
    draw = np.random.default_rng(seed)
    words = ["".join(draw.choice(SYLLABLES, draw.integers(1, 4))) for _ in range(60)]
    return [" ".join(draw.choice(words, draw.integers(3, 9))) for _ in range(n)]


HOME, AWAY = sentences(1), sentences(2)


def unigram_pieces(specials):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(
        HOME + AWAY,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False),
    )
    return [tuple(piece) for piece in json.loads(backend.to_str())["model"]["vocab"]]


def bpe_parts(specials, **model):
    backend = Tokenizer(models.BPE(**model))
    byte_level = not model.get("byte_fallback") and "unk_token" not in model
    backend.pre_tokenizer = pre_tokenizers.ByteLevel() if byte_level else pre_tokenizers.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    suffix = {name: model[name] for name in ("end_of_word_suffix",) if name in model}
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False, **suffix
    )
    backend.train_from_iterator(HOME + AWAY, trainer)
    part = json.loads(backend.to_str())["model"]
    return part["vocab"], [tuple(merge) for merge in part["merges"]]


def xlm_roberta():
    return XLMRobertaTokenizer(vocab=[*unigram_pieces(["<s>", "<pad>", "</s>", "<unk>"]), ("<mask>", 0.0)])


def mbart():
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

    tail = [(code, 0.0) for code in FAIRSEQ_LANGUAGE_CODES] + [("<mask>", 0.0)]
    vocab = unigram_pieces(["<s>", "<pad>", "</s>", "<unk>"]) + tail
    return MBartTokenizer(vocab=vocab, src_lang="en_XX", tgt_lang="ro_RO")


def t5():
    pieces = unigram_pieces(["<pad>", "</s>", "<unk>"])
    return T5Tokenizer(vocab=pieces + [(f"<extra_id_{i}>", 0.0) for i in range(99, -1, -1)])


def bert():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        HOME + AWAY, trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    )
    return BertTokenizer(vocab=json.loads(backend.to_str())["model"]["vocab"], strip_accents=False)


def gpt2():
    vocab, merges = bpe_parts(["<|endoftext|>"])
    vocab = {token: (i - 1) % len(vocab) for token, i in vocab.items()}  # GPT-2's one special token is its last
    return GPT2Tokenizer(vocab=vocab, merges=merges)


def llama():
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab, merges = bpe_parts(["<unk>", "<s>", "</s>", *fallback], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    every = [(piece[:i], piece[i:]) for piece in vocab for i in range(1, len(piece))]
    merges += sorted(
        {m for m in every if m[0] in vocab and m[1] in vocab} - set(merges)
    )  # as sentencepiece's are converted
    tokenizer = LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def suffixed():
    """Characters with an end-of-word mark, an unknown token, a post-processor inside a sequence, and padding."""
    vocab, merges = bpe_parts(["<unk>", "<pad>", "<s>", "</s>"], unk_token="<unk>", end_of_word_suffix="</w>")
    vocab = {token: (i - 4) % len(vocab) for token, i in vocab.items()}  # special tokens last, so that they all move
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.BPEDecoder()
    ends = processors.RobertaProcessing(("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]))
    backend.post_processor = processors.Sequence([ends])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


MAKES = {make.__name__: make for make in (xlm_roberta, mbart, t5, bert, gpt2, llama, suffixed)}


@pytest.mark.parametrize("make", MAKES)
def test_home_texts_survive_the_loss_of_the_away_language(make, tmp_path):
    tokenizer = MAKES[make]()
    keep = frequent_tokens(tokenizer, HOME, min_count=1)
    small, order = trim_tokenizer(tokenizer, keep)
    assert len(order) == len(small) < len(tokenizer)
    assert [[order[i] for i in ids] for ids in small(HOME)["input_ids"]] == tokenizer(HOME)["input_ids"]
    assert [order[i] for i in small(HOME[0], HOME[1])["input_ids"]] == tokenizer(HOME[0], HOME[1])["input_ids"]
    assert small.decode(small(HOME[0])["input_ids"]) == tokenizer.decode(tokenizer(HOME[0])["input_ids"])
    assert [order[i] for i in small.all_special_ids] == tokenizer.all_special_ids
    small.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(HOME)["input_ids"] == small(HOME)["input_ids"]


@pytest.mark.parametrize("make", MAKES)
def test_the_original_is_left_as_it_was(make):
    tokenizer = MAKES[make]()
    before, vocab = tokenizer.backend_tokenizer.to_str(), tokenizer.get_vocab()
    trim_tokenizer(tokenizer, frequent_tokens(tokenizer, HOME))
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.get_vocab() == vocab


def test_bytes_stay_so_that_any_text_is_encoded():
    odd = "日本 \N{GRINNING FACE} ß"
    for tokenizer in (gpt2(), llama()):
        keep = frequent_tokens(tokenizer, HOME, min_count=1)
        assert (
            trim_tokenizer(tokenizer, keep)[0]
            .decode(trim_tokenizer(tokenizer, keep)[0](odd)["input_ids"])
            .endswith(odd)
        )
        bare = trim_tokenizer(tokenizer, keep, alphabet=False)[0]
        assert odd not in bare.decode(bare(odd)["input_ids"])


def test_added_tokens_stay_and_come_last():
    tokenizer = llama()
    small, order = trim_tokenizer(tokenizer, [])
    assert order[-1] == tokenizer.get_vocab()["<tool>"]
    assert small.get_vocab()["<tool>"] == len(small) - 1


def test_padding_and_language_codes_are_renumbered():
    tokenizer = suffixed()
    keep = frequent_tokens(tokenizer, HOME)
    tokenizer.backend_tokenizer.enable_padding(pad_id=tokenizer.pad_token_id, pad_token="<pad>")
    small, _ = trim_tokenizer(tokenizer, keep)
    assert backend_state(small)["padding"]["pad_id"] == small.pad_token_id < tokenizer.pad_token_id
    translator = mbart()
    small, order = trim_tokenizer(translator, frequent_tokens(translator, HOME))
    assert order[small(HOME[0])["input_ids"][-1]] == translator.convert_tokens_to_ids("en_XX")
    assert order[small(text_target=HOME[0])["input_ids"][-1]] == translator.convert_tokens_to_ids("ro_RO")


def test_the_price_of_an_unknown_character_stays():
    """Deleting the piece of the lowest score would make unknown characters cheaper, and "xab" would be cut anew."""
    vocab = [("<unk>", 0.0), ("a", -6.0), ("b", -6.0), ("xa", -9.0), ("ab", -2.0), ("x", -9.5), ("q", -40.0)]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(vocab, unk_id=0)), unk_token="<unk>")
    tokenizer.backend_tokenizer.model = models.Unigram([*vocab[:5], ("x", -30.0), vocab[6]], unk_id=0)
    before = tokenizer.tokenize("xab")
    assert before == ["xa", "b"]
    small, _ = trim_tokenizer(tokenizer, [1, 2, 3, 4])
    assert small.tokenize("xab") == before
    assert min(score for _, score in backend_state(small)["model"]["vocab"]) == -40.0


def test_derivation_passes_through_what_bpe_passes_through():
    ranks = {("l", "o"): 0, ("lo", "w</w>"): 1, ("e", "r"): 2, ("o", "w</w>"): 3}
    assert derivation("low</w>", ranks, suffix="</w>") == {"l", "o", "w</w>", "lo", "low</w>"}
    assert derivation("ow</w>", ranks, suffix="</w>") == {"o", "w</w>", "ow</w>"}
    assert derivation("lower", ranks) == set()  # stands in the vocabulary, but no merges lead there
    inside = {("a", "##b"): 0, ("##b", "##c"): 1}
    assert derivation("##bc", inside, prefix="##") == {"##b", "##c", "##bc"}
    assert derivation("ab", inside, prefix="##") == {"a", "##b", "ab"}


def test_words_that_no_merges_lead_to_stay_where_merges_are_ignored():
    """Tokenizers converted from tiktoken take a word that stands in the vocabulary whole, whatever the merges."""
    vocab = {token: i for i, token in enumerate(["a", "b", "c", "ab", "abc", "bc", "cab", "d"])}
    merges = [("a", "b"), ("b", "c"), ("c", "ab")]
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokenizer.tokenize("abc cab ccab") == ["abc", "cab", "c", "cab"]
    small, order = trim_tokenizer(tokenizer, np.array([vocab["abc"], vocab["cab"], vocab["c"]]))
    assert [list(vocab)[i] for i in order] == ["a", "b", "c", "ab", "abc", "cab"]
    assert small.tokenize("abc cab ccab") == ["abc", "cab", "c", "cab"]


def test_essentials_name_the_unknown_token_even_if_it_is_not_special():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1, "b": 2}, unk_token="?"))
    )
    assert essential_ids(backend_state(tokenizer)) == {1}
    small, order = trim_tokenizer(tokenizer, [2])
    assert order == [1, 2]
    assert token_ids(backend_state(small)) == {"?": 0, "b": 1}


def test_refusals():
    class Slow:
        pass

    with pytest.raises(LimbeckError, match=r"needs a fast tokenizer, one with a tokenizer\.json, but got Slow"):
        backend_state(Slow())
    with pytest.raises(LimbeckError, match="keep: 9999 is not the id of a token"):
        trim_tokenizer(bert(), [9999])
