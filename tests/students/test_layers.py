"""Students with fewer layers or a smaller width, over several architectures."""

import re

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from limbeck.core.check import LimbeckError
from limbeck.students.layers import every_other, keep_layers, parse_size, resized, shape, smaller

SMALL = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
MAKERS = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SMALL)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=40, dim=24, n_layers=4, n_heads=4, hidden_dim=48)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=24, n_layer=4, n_head=4, n_positions=32)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=2)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=40,
            hidden_size=24,
            num_hidden_layers=4,
            num_attention_heads=4,
            ffn_dim=48,
            word_embed_proj_dim=24,
            pad_token_id=0,
        )
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=24, d_kv=6, d_ff=48, num_layers=4, num_heads=4)
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            vocab_size=40,
            d_model=24,
            encoder_layers=4,
            decoder_layers=4,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
        )
    ),
}


def make(name: str, seed: int = 0):
    torch.manual_seed(seed)
    return MAKERS[name]().eval()


def logits(model) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **extra).logits


def is_in_layer(key: str, number: str) -> bool:
    found = re.search(r"\.(\d+)\.", key)
    return found is not None and found[1] == number


@pytest.mark.parametrize("name", MAKERS)
def test_keeping_layers_copies_them_and_the_rest(name):
    model = make(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = keep_layers(model, [0, 2])
    assert small.config.num_hidden_layers == 2
    old, new = model.state_dict(), small.state_dict()
    assert all(torch.equal(old[key], before[key]) for key in before), "the teacher must not change"
    assert any(is_in_layer(key, "1") for key in new)
    assert not any(is_in_layer(key, "2") for key in new)
    for key, value in new.items():
        source = key.replace(".1.", ".2.", 1) if is_in_layer(key, "1") else key
        assert torch.equal(value, old[source]), key
    assert logits(small.eval()).shape == logits(model).shape


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_dropped_layers_are_really_gone(name):
    """With the dropped layers turned into the identity, the teacher says what the student says."""
    model = make(name)
    small = keep_layers(model, [1, 3]).eval()
    stack = {"bert": "bert.encoder.layer", "gpt2": "transformer.h", "llama": "model.layers"}[name]
    layers = model.get_submodule(stack)
    for index in (0, 2):
        layers[index].forward = lambda hidden, *args, **kwargs: hidden
    torch.testing.assert_close(logits(small), logits(model))


def test_a_shrunk_decoder_still_generates_with_its_cache():
    small = keep_layers(make("llama"), [1, 3]).eval()
    ids = torch.tensor([[5, 6, 7]])
    with_cache = small.generate(ids, max_new_tokens=6, do_sample=False, use_cache=True, pad_token_id=0)
    without = small.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False, pad_token_id=0)
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize("name", MAKERS)
def test_a_smaller_model_runs_and_survives_a_save(name, tmp_path):
    model = make(name)
    small = smaller(model, 2, 16).eval()
    assert shape(small) == (2, 16, 4)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters()) * 0.6
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), logits(small))


def test_widths_scale_with_the_model():
    config = resized(make("qwen2").config, 2, 48, heads=8)
    assert (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads) == (96, 8, 4)
    assert len(config.layer_types) == 2
    assert smaller(make("llama"), 2, 48, heads=8).config.head_dim == 6


def test_what_the_teacher_was_built_without_stays_away():
    model = BertModel(BertConfig(**SMALL), add_pooling_layer=False)
    assert keep_layers(model, [0, 1]).pooler is None
    assert smaller(model, 2, 12).pooler is None


def test_bf16_stays_bf16():
    assert {p.dtype for p in keep_layers(make("gpt2").bfloat16(), [0, 1]).parameters()} == {torch.bfloat16}


def test_negative_layers_count_from_the_end():
    assert torch.equal(
        keep_layers(make("bert"), [0, -1]).state_dict()["bert.encoder.layer.1.output.dense.weight"],
        make("bert").state_dict()["bert.encoder.layer.3.output.dense.weight"],
    )


def test_every_other():
    assert every_other(12, 6) == [0, 2, 4, 6, 8, 10]
    assert every_other(12, 4) == [0, 3, 6, 9]
    assert every_other(3, 2) == [0, 1]


def test_sizes():
    assert parse_size("6x384") == (6, 384)
    assert parse_size("12X768") == (12, 768)
    assert parse_size("bert-base") is None
    assert parse_size("6x") is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keep_layers(make("bert"), [0, 1, 2, 3]), "nothing would change"),
        (lambda: keep_layers(make("bert"), [0, 4]), r"layers 0 to 3; asked to keep \[0, 4\]"),
        (lambda: keep_layers(make("bert"), [1, 1]), "asked to keep"),
        (lambda: keep_layers(make("bert"), []), "asked to keep"),
        (lambda: keep_layers(make("t5"), [1, 2]), "keep layer 0 too"),
        (lambda: keep_layers(torch.nn.Linear(2, 2), [0]), "expected a transformers model"),
        (
            lambda: keep_layers(AlbertModel(AlbertConfig(**SMALL, embedding_size=8)), [0, 2]),
            "found no list of 4 layers",
        ),
        (lambda: smaller(make("bert"), 4, 24), "already has 4 layers of width 24"),
        (lambda: smaller(make("bert"), 2, 18), "cannot be split into 4 heads"),
        (lambda: smaller(make("bert"), 0, 12), "at least one layer"),
        (lambda: smaller(make("llama"), 2, 12), "need an even head width"),
        (lambda: every_other(4, 4), "1 to 3 of 4"),
    ],
)
def test_layers_refusals(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
