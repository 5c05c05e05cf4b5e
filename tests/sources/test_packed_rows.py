"""Several documents in one row: the numbers that they give alone, for every family, or a refusal."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from limbeck.core.batch import next_token_batch
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.data.stream import lengths_mask, pad
from limbeck.objectives.relations import relation
from limbeck.sources.model import model_source

SIZE = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
GROUPED = SIZE | {"num_key_value_heads": 1, "max_position_embeddings": 32}
OLD = {"vocab_size": 41, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
DECODERS = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**OLD)),
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**OLD, rotary_dim=4)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=8)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=None)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GROUPED, head_dim=8, sliding_window=24)),
    "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZE, max_position_embeddings=32)),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(vocab_size=41, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32)
    ),
}
DOCUMENTS = [[[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15]], [[16, 17, 18, 19, 20, 21]]]


def strong(model):
    """Weights large enough for a text to notice its neighbour."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
    return model.eval()


def packed():
    rows = [[token for text in row for token in text] for row in DOCUMENTS]
    segment = pad([[number for number, text in enumerate(row, 1) for _ in text] for row in DOCUMENTS])
    return next_token_batch(pad(rows), lengths_mask(rows)) | {"segment": segment}


@pytest.mark.parametrize("name", DECODERS)
def test_documents_in_a_row_are_as_documents_alone(name):
    torch.manual_seed(0)
    source = model_source(strong(DECODERS[name]()), hidden=[-1])
    with torch.no_grad():
        said = source(packed())
        alone = [torch.cat([source({"ids": torch.tensor([text])}).logits_at()[0] for text in row]) for row in DOCUMENTS]
    logits = said.logits_at()
    for row, expected in enumerate(alone):
        torch.testing.assert_close(logits[row, : len(expected)], expected, atol=2e-5, rtol=1e-4)
    without = {key: value for key, value in packed().items() if key != "segment"}
    assert (source(without).logits_at()[0, 5:] - alone[0][5:]).abs().max() > 1e-3, "the mask does something"


def test_an_adapted_model_too():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(strong(DECODERS["llama"]()), peft.LoraConfig(r=2, target_modules="all-linear"))
    source = model_source(model.eval())
    said = source(packed()).logits_at()[0]
    torch.testing.assert_close(
        said[5:7], source({"ids": torch.tensor([[10, 11]])}).logits_at()[0], atol=2e-5, rtol=1e-4
    )


def test_the_trial_leaves_a_model_as_it_was_and_comes_once():
    model = DECODERS["gpt2"]().train()
    model.transformer.h[0].eval()
    modes = [part.training for part in model.modules()]
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    source = model_source(model)
    state = torch.get_rng_state()
    source._check_segments()
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.modules()] == modes
    assert len(calls) == 2
    source._check_segments()
    assert len(calls) == 2


MAMBA = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "vocab_size": 41}


def mixed() -> hf.PreTrainedModel:
    """Attention and linear attention in turn: positions and a mask of one's own are taken, a memory leaks."""
    layers = {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2}
    heads = {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    return hf.Qwen3NextForCausalLM(hf.Qwen3NextConfig(**GROUPED, **layers, **heads, **experts))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZE)), "does not read from left to right"),
        (lambda: hf.MambaForCausalLM(hf.MambaConfig(**MAMBA)), "takes no position_ids"),
        (lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=41, hidden_size=16, n_head=2)), "takes no position_ids"),
        (mixed, "lets a text see the one before it"),
    ],
)
def test_models_that_would_mix_texts_are_refused(model, message):
    torch.manual_seed(0)
    with pytest.raises(LimbeckError, match=message):
        model_source(strong(model()))(packed())


def test_flash_attention_is_refused():
    model = DECODERS["llama"]()
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(LimbeckError, match="flash_attention_2, which cannot keep"):
        model_source(model)(packed())


def test_what_looks_at_whole_rows_is_refused():
    with pytest.raises(LimbeckError, match="one vector per row would mix"):
        model_source(DECODERS["llama"](), pooled="mean")(packed())
    with pytest.raises(LimbeckError, match="a relation compares all tokens of a row"):
        relation()(Signals(), Signals(), packed(), Clock(0, 1))
