"""Tiny random language models whose weights are large enough that every position matters."""

from functools import cache

import pytest
import torch

WORDS = 60


def spread(model):
    """Weights of standard deviation 0.4: with transformers' 0.02 all tokens would be about equally likely."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    model.generation_config.eos_token_id = None  # random models end at random
    return model.double().eval()


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 3, "bos_token_id": 1, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, **size))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    size = {"hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, **heads, **size))


def gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "head_dim": 8}
    size = {"hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": 64}
    odd = {"sliding_window": 6, "final_logit_softcapping": 2.0}  # a short window, and logits changed behind the head
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=WORDS, **heads, **size, **odd))


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    size = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3}
    return T5ForConditionalGeneration(T5Config(vocab_size=WORDS, decoder_start_token_id=0, **size))


def bart():
    from transformers import BartConfig, BartForConditionalGeneration

    sides = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 3))
    }
    size = {"d_model": 24, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 64}
    ids = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1, "forced_eos_token_id": None}
    return BartForConditionalGeneration(BartConfig(vocab_size=WORDS, **sides, **size, **ids))


def mamba():
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=WORDS, hidden_size=24, num_hidden_layers=2))


BUILD = {build.__name__: build for build in (gpt2, llama, gemma2, t5, bart, mamba)}


@pytest.fixture(scope="session")
def model():
    """A tiny model by name; built once."""
    return cache(lambda name: spread(BUILD[name]()))


@pytest.fixture
def ids():
    """Random token ids: ``ids(5)`` gives five."""
    generator = torch.Generator().manual_seed(7)
    return lambda count: torch.randint(3, WORDS, (count,), generator=generator).tolist()
