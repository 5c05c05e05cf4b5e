"""Models with some rows of their tables: every architecture and head, in memory and after saving and loading."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from limbeck.core.check import LimbeckError
from limbeck.students.rows import vocabulary_tensors
from limbeck.students.unchanged import check_same_logits
from limbeck.students.vocabulary import (
    count_tokens,
    coverage,
    frequent_tokens,
    kept_rows,
    table_sizes,
    trim_vocabulary,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "vocab-trim"
WORDS = [f"w{i}" for i in range(90)]
NAMES = ["<unk>", "<s>", "<pad>", "</s>"]  # in the middle of the vocabulary, so that every one of them moves
VOCAB = [*WORDS[:40], *NAMES, *WORDS[40:], "<mask>"]
HOME = [" ".join(WORDS[(7 * i + j) % 60 + 3] for j in range(6)) for i in range(25)]  # uses w3 to w62
ROWS = 100  # five rows more than tokens


def reader():
    """A word-level tokenizer with special tokens in the middle and at the end of its vocabulary."""
    ids = {word: i for i, word in enumerate(VOCAB)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    special = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{k}_token": v for k, v in special.items()})


SPECIAL = {"bos_token_id": 41, "pad_token_id": 42, "eos_token_id": 43}
ENCODER = {"vocab_size": ROWS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **SPECIAL,
           "intermediate_size": 24, "max_position_embeddings": 90}  # fmt: skip
BART = {"vocab_size": ROWS, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 90,
        "decoder_start_token_id": 43, "forced_eos_token_id": 43, **SPECIAL}  # fmt: skip
T5 = {"vocab_size": ROWS, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2,
      "decoder_start_token_id": 42, **SPECIAL}  # fmt: skip
LLAMA = {**ENCODER, "num_key_value_heads": 1}
GPT2 = {"vocab_size": ROWS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 90, **SPECIAL}
DISTIL = {"vocab_size": ROWS, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, **SPECIAL}
LOW = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}

MODELS = {
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**ENCODER)),
    "bert untied": lambda: hf.BertForMaskedLM(hf.BertConfig(**ENCODER, tie_word_embeddings=False)),
    "bert pretraining": lambda: hf.BertForPreTraining(hf.BertConfig(**ENCODER)),
    "bert base": lambda: hf.BertModel(hf.BertConfig(**ENCODER)),
    "bert tokens": lambda: hf.BertForTokenClassification(hf.BertConfig(**ENCODER, num_labels=5)),
    "xlm-r": lambda: hf.XLMRobertaForMaskedLM(hf.XLMRobertaConfig(**ENCODER)),
    "xlm-r sequence": lambda: hf.XLMRobertaForSequenceClassification(hf.XLMRobertaConfig(**ENCODER, num_labels=3)),
    "distilbert": lambda: hf.DistilBertForMaskedLM(hf.DistilBertConfig(**DISTIL)),
    "albert": lambda: hf.AlbertForMaskedLM(hf.AlbertConfig(**ENCODER, embedding_size=8)),
    "electra": lambda: hf.ElectraForMaskedLM(hf.ElectraConfig(**ENCODER, embedding_size=8)),
    "deberta": lambda: hf.DebertaV2ForMaskedLM(hf.DebertaV2Config(**ENCODER)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "gpt2 sequence": lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(**GPT2, num_labels=3)),
    "llama untied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
    "llama tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**LLAMA, head_dim=8)),
    "t5 tied": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "t5 untied": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, tie_word_embeddings=False)),
    "mt5": lambda: hf.MT5ForConditionalGeneration(hf.MT5Config(**T5)),
    "mbart": lambda: hf.MBartForConditionalGeneration(hf.MBartConfig(**BART)),
    "bart sequence": lambda: hf.BartForSequenceClassification(hf.BartConfig(**BART, num_labels=3)),
    "marian": lambda: hf.MarianMTModel(hf.MarianConfig(**BART, decoder_vocab_size=ROWS)),
    "m2m100": lambda: hf.M2M100ForConditionalGeneration(hf.M2M100Config(**BART)),
}


def build(name):
    """A random model with random biases, in eval mode, and its tokenizer."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for tensor in vocabulary_tensors(model):
            tensor.normal_()
    return model, reader()


def says(model, ids):
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    said = model(**inputs)
    logits = said.get("logits", said.get("prediction_logits"))
    return said[0] if logits is None else logits


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_small_model_says_the_same(name, tmp_path):
    model, tokenizer = build(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    keep = frequent_tokens(tokenizer, HOME)
    small, small_tokenizer = trim_vocabulary(model, tokenizer, keep)
    assert check_same_logits(model, tokenizer, small, small_tokenizer, HOME, most=5) == 5

    rows = kept_rows(model, tokenizer, small_tokenizer)
    ids = torch.tensor(small_tokenizer(HOME[:3])["input_ids"])
    expected, got = says(model, torch.tensor(rows)[ids]), says(small, ids)
    if expected.shape[-1] == ROWS:
        expected = expected[..., rows]
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)

    small.save_pretrained(tmp_path)
    small_tokenizer.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(says(loaded, ids), got)
    assert loaded.config.vocab_size == len(rows) == len(small_tokenizer)
    assert hf.AutoTokenizer.from_pretrained(tmp_path)(HOME)["input_ids"] == small_tokenizer(HOME)["input_ids"]

    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert model.config.vocab_size == ROWS


def ties(parameters):
    """Which names stand for one tensor."""
    groups = {}
    for name, tensor in parameters.items():
        groups.setdefault(id(tensor), []).append(name)
    return sorted(groups.values())


@pytest.mark.parametrize("name", MODELS)
def test_only_tables_are_copied_and_ties_stay(name):
    model, tokenizer = build(name)
    small, small_tokenizer = trim_vocabulary(model, tokenizer, frequent_tokens(tokenizer, HOME))
    tables = {id(tensor) for tensor in vocabulary_tensors(model)}
    ours, theirs = (dict(m.named_parameters(remove_duplicate=False)) for m in (model, small))
    assert list(ours) == list(theirs)
    assert all((theirs[name] is own) != (id(own) in tables) for name, own in ours.items())
    assert ties(ours) == ties(theirs)
    assert [p.requires_grad for p in theirs.values()] == [p.requires_grad for p in ours.values()]
    assert len(small_tokenizer) == small.get_input_embeddings().num_embeddings < ROWS


@pytest.mark.parametrize("name", MODELS)
def test_ids_that_the_model_names_move_with_their_tokens(name):
    model, tokenizer = build(name)
    small, small_tokenizer = trim_vocabulary(model, tokenizer, frequent_tokens(tokenizer, HOME))
    for config in (small.config, getattr(small, "generation_config", None)):
        for token in ("bos", "pad", "eos") if config is not None else ():
            assert getattr(config, f"{token}_token_id") in (getattr(small_tokenizer, f"{token}_token_id"), None)
    assert small.config.pad_token_id == small_tokenizer.pad_token_id
    if small.config.is_encoder_decoder:
        start = VOCAB[model.config.decoder_start_token_id]
        assert small.config.decoder_start_token_id == small_tokenizer.convert_tokens_to_ids(start)
    if name in ("xlm-r", "m2m100"):  # positions are counted from the padding id, so it may not move
        assert small.config.pad_token_id == 42
    if name == "bert":
        assert small.config.pad_token_id == small.get_input_embeddings().padding_idx < 42


@pytest.mark.parametrize("name", ["t5 untied", "mbart", "marian", "gpt2", "llama tied"])
def test_generation_is_the_same_where_nothing_is_missed(name):
    model, tokenizer = build(name)
    keep = set(range(95)) - {0, 1, 90}
    small, small_tokenizer = trim_vocabulary(model, tokenizer, keep)
    rows = kept_rows(model, tokenizer, small_tokenizer)
    gone = [[i] for i in range(ROWS) if i not in rows]
    ids = torch.tensor(small_tokenizer(HOME[:2])["input_ids"])
    plain = {"max_new_tokens": 8, "do_sample": False, "num_beams": 2}
    wide = model.generate(torch.tensor(rows)[ids], bad_words_ids=gone, **plain)
    assert torch.equal(torch.tensor(rows)[small.generate(ids, **plain)], wide)


def test_batches_with_padding_and_a_gradient():
    model, tokenizer = build("xlm-r")
    small, small_tokenizer = trim_vocabulary(model, tokenizer, frequent_tokens(tokenizer, HOME))
    rows = torch.tensor(kept_rows(model, tokenizer, small_tokenizer))
    batch = small_tokenizer([HOME[0], "w5 w9"], padding=True, return_tensors="pt")
    wide = model(rows[batch["input_ids"]], attention_mask=batch["attention_mask"]).logits[..., rows]
    said = small(**batch, labels=batch["input_ids"])
    torch.testing.assert_close(said.logits, wide, atol=2e-6, rtol=1e-5)
    parted = copy.deepcopy(small)
    parted(**batch, labels=batch["input_ids"]).loss.backward()
    assert parted.get_input_embeddings().weight.grad.abs().sum() > 0
    assert all(p.grad is None for part in (model, small) for p in part.parameters())


def test_half_precision_and_settings_that_forbid_tokens():
    model, tokenizer = build("mbart")
    model = model.to(torch.bfloat16)
    model.generation_config.suppress_tokens = [5, 94, 0]
    model.generation_config.bad_words_ids = [[5, 6], [0]]
    model.generation_config.eos_token_id = [43, 7]
    small, small_tokenizer = trim_vocabulary(model, tokenizer, frequent_tokens(tokenizer, HOME))
    check_same_logits(model, tokenizer, small, small_tokenizer, HOME)
    ids, settings = small_tokenizer.convert_tokens_to_ids, small.generation_config
    assert settings.suppress_tokens == [ids("w5"), ids("<mask>")]
    assert settings.bad_words_ids == [[ids("w5"), ids("w6")]]
    assert settings.eos_token_id == [ids("</s>"), ids("w7")]
    assert small.dtype == torch.bfloat16


def test_a_row_that_only_the_configuration_names_stays_last():
    model, tokenizer = build("t5 tied")
    model.config.decoder_start_token_id = 97
    small, small_tokenizer = trim_vocabulary(model, tokenizer, frequent_tokens(tokenizer, HOME))
    assert small.config.decoder_start_token_id == len(small_tokenizer) == small.config.vocab_size - 1
    assert torch.equal(small.shared.weight[-1], model.shared.weight[97])
    check_same_logits(model, tokenizer, small, small_tokenizer, HOME)


@pytest.mark.parametrize("case", ["full", "topk", "tied"])
def test_golden_embeddings_head_and_sizes(case):
    arrays = np.load(GOLDEN / "unigram.npz")
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_file=str(GOLDEN / "unigram_tokenizer.json"), **names)
    config = hf.XLMRobertaConfig(**{**ENCODER, "vocab_size": 261, "hidden_size": 8, **LOW})
    model = hf.XLMRobertaForMaskedLM(config).double()
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.from_numpy(arrays["embedding"]))
        model.lm_head.bias.copy_(torch.from_numpy(arrays["bias"]))
    small, _ = trim_vocabulary(model, tokenizer, arrays[f"{case}_kept"].tolist())
    assert np.array_equal(small.get_input_embeddings().weight.detach().numpy(), arrays[f"{case}_small_embedding"])
    assert np.array_equal(small.get_output_embeddings().weight.detach().numpy(), arrays[f"{case}_small_embedding"])
    assert np.array_equal(small.lm_head.bias.detach().numpy(), arrays[f"{case}_small_bias"])
    (whole, table, rows), (whole_small, table_small, rows_small) = arrays[f"{case}_sizes"].tolist()
    before, after = table_sizes(model), table_sizes(small)
    assert [before["embedding"], before["rows"]] == [table, rows]
    assert [after["embedding"], after["rows"]] == [table_small, rows_small]
    assert before["parameters"] - after["parameters"] == whole - whole_small
    assert before["bytes"] - after["bytes"] == 8 * (whole - whole_small)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("case", ["full", "topk", "tied"])
def test_golden_embeddings_of_the_other_kinds(kind, case):
    arrays = np.load(GOLDEN / f"{kind}.npz")
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_file=str(GOLDEN / f"{kind}_tokenizer.json"))
    rows = len(arrays["embedding"])
    model = hf.BertForMaskedLM(hf.BertConfig(**{**ENCODER, **LOW, "hidden_size": 8, "vocab_size": rows})).double()
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.from_numpy(arrays["embedding"]))
    small, _ = trim_vocabulary(model, tokenizer, arrays[f"{case}_kept"].tolist(), alphabet=False)
    assert np.array_equal(
        small.get_input_embeddings().weight.detach().numpy(), arrays["embedding"][arrays[f"{case}_order"]]
    )


def test_frequent_tokens_counts_like_the_card():
    tokenizer = reader()
    texts = ["w1 w2 w2", "", "w3 w3 w4 w1", "w9"]
    counts = count_tokens(tokenizer, texts, chunk=2)
    assert [(VOCAB[i], n) for i, n in counts.items()] == [
        ("<s>", 4), ("w1", 2), ("w2", 2), ("</s>", 4), ("w3", 2), ("w4", 1), ("w9", 1)
    ]  # fmt: skip
    special = {40, 41, 42, 43, 94}
    assert set(frequent_tokens(tokenizer, texts)) == special | {1, 2, 3}
    assert set(frequent_tokens(tokenizer, texts, min_count=1)) == special | {1, 2, 3, 4, 9}
    assert set(frequent_tokens(tokenizer, texts, size=6, min_count=1)) == special | {1, 2, 3, 4}  # ties: earlier first
    assert set(frequent_tokens(tokenizer, texts, always=[77])) == special | {1, 2, 3, 77}
    assert coverage(counts, {1, 41, 43}) == 10 / 16


def test_the_check_sees_a_wrong_row_a_wrong_bias_and_a_wrong_tokenizer():
    model, tokenizer = build("mbart")
    small, small_tokenizer = trim_vocabulary(model, tokenizer, frequent_tokens(tokenizer, HOME))
    for tensor in vocabulary_tensors(small):
        right = tensor.detach().clone()
        with torch.no_grad():
            tensor[..., -1] += 1e-6
        with pytest.raises(LimbeckError, match="rows 0 to 1024 of the trimmed MBartForConditionalGeneration"):
            check_same_logits(model, tokenizer, small, small_tokenizer, HOME)
        with torch.no_grad():
            tensor.copy_(right)
    check_same_logits(model, tokenizer, small, small_tokenizer, HOME)
    other = reader()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("w", "isolated")
    whole = hf.BertForMaskedLM(hf.BertConfig(**{**ENCODER, "vocab_size": 95}))
    with pytest.raises(LimbeckError, match="trimming changed how 'w3"):
        check_same_logits(whole, tokenizer, whole, other, HOME)


def test_the_check_sees_what_differs_besides_the_tables():
    model, tokenizer = build("bert")
    small, small_tokenizer = trim_vocabulary(model, tokenizer, frequent_tokens(tokenizer, HOME))
    small = copy.deepcopy(small)
    with torch.no_grad():
        small.bert.encoder.layer[0].output.dense.bias[0] += 0.1
    with pytest.raises(LimbeckError, match="trimmed BertForMaskedLM differs from its original by"):
        check_same_logits(model, tokenizer, small, small_tokenizer, HOME)


def test_refusals():
    model, tokenizer = build("bert")
    with pytest.raises(LimbeckError, match="size 5: the tokenizer has 5 special tokens"):
        frequent_tokens(tokenizer, HOME, size=5)
    with pytest.raises(LimbeckError, match="size 60: only 60 tokens occur 2 times or more"):
        frequent_tokens(tokenizer, HOME, size=60)
    for empty in ([], iter(())):
        with pytest.raises(LimbeckError, match="the corpus holds no text"):
            frequent_tokens(tokenizer, empty)
    full = hf.BertForMaskedLM(hf.BertConfig(**{**ENCODER, "vocab_size": 95}))
    with pytest.raises(LimbeckError, match="nothing to trim: all 95 rows"):
        trim_vocabulary(full, tokenizer, range(95))
    with pytest.raises(LimbeckError, match="the tokenizer has 95 tokens, but the model's table only 60 rows"):
        trim_vocabulary(hf.BertModel(hf.BertConfig(**{**ENCODER, "vocab_size": 60})), tokenizer, [1])
    with pytest.raises(LimbeckError, match="keep: expected ids from 0 to 99, but got 100"):
        trim_vocabulary(model, tokenizer, [100])
    with pytest.raises(LimbeckError, match="keep: expected ids from 0 to 99, but got -1"):
        trim_vocabulary(model, tokenizer, [1, -1])
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    seer = hf.ViTModel(hf.ViTConfig(**small, image_size=8, patch_size=4))
    with pytest.raises(LimbeckError, match="reads tokens through a table, but got ViTModel"):
        trim_vocabulary(seer, tokenizer, [1])
    apart = hf.MarianConfig(**BART, decoder_vocab_size=50, share_encoder_decoder_embeddings=False)
    with pytest.raises(LimbeckError, match="vocabularies of 100 and 50 tokens"):
        trim_vocabulary(hf.MarianMTModel(apart), tokenizer, [1])
