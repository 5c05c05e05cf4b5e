"""Costs against PyTorch's own counter and against caches of real models."""

from __future__ import annotations

import pytest
import tiny_llms
import torch
from torch.utils.flop_counter import FlopCounterMode

from limbeck.context.costs import cache_bytes, prefill, shape_of


def counted(model: torch.nn.Module, **inputs: torch.Tensor) -> int:
    model.set_attn_implementation("eager")  # the counter knows matrix products
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs, use_cache=False)
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_prefill_is_what_pytorch_counts(kind: str) -> None:
    model = tiny_llms.build(kind, width=32, layers=3)
    said = counted(model, input_ids=torch.ones(1, 20, dtype=torch.long))
    ours = shape_of(model).flops(20, logits=20)
    assert ours == pytest.approx(said, rel=0.01)  # rotary angles are a matrix product too


def test_gpt2_is_the_familiar_formula() -> None:
    model = tiny_llms.build("gpt2", width=32, layers=3)
    n, d, v = 20, 32, model.config.vocab_size
    assert prefill(model, 15, 5) == 3 * (24 * n * d * d + 4 * n * n * d) + 2 * d * v


def test_a_cached_prefix_costs_its_attention_alone() -> None:
    shape = shape_of(tiny_llms.build("gpt2", width=32, layers=3))
    whole, behind = shape.flops(20), shape.flops(5, past=15)
    assert behind == 5 * whole / 20


def test_encoder_decoder_is_near_what_pytorch_counts() -> None:
    model = tiny_llms.build("t5", width=32)
    ids = torch.ones(1, 30, dtype=torch.long)
    said = counted(model, input_ids=ids, decoder_input_ids=ids[:, :30])
    head = 2 * 29 * model.config.vocab_size * 32  # the counter has logits at every position
    assert prefill(model, 30, 30) == pytest.approx(said - head, rel=0.1)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_cache_bytes_are_those_of_a_real_cache(kind: str) -> None:
    model = tiny_llms.build(kind)
    with torch.no_grad():
        cache = model(torch.ones(1, 12, dtype=torch.long), use_cache=True).past_key_values
    real = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cache_bytes(model, 12) == real
    assert cache_bytes(model.half(), 12) == real // 2
