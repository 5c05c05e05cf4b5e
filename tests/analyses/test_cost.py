"""Size and speed of a model."""

from __future__ import annotations

import time

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck.analyses.cost import megabytes, parameters, tokens_per_second
from limbeck.core.signals import Signals


def test_shared_weights_count_once():
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=True, **sizes))
    assert parameters(model) == 50 * 8 + 4 * 64 + 3 * 128 + 3 * 8
    assert megabytes(model) == pytest.approx(4e-6 * parameters(model))
    assert megabytes(model.half()) == pytest.approx(2e-6 * parameters(model))


def test_speed_counts_real_tokens():
    mask = torch.tensor([[True, True, False]])
    batch = {"ids": torch.zeros(1, 3, dtype=torch.long), "mask": mask}

    def slow(batch):
        time.sleep(0.01)
        return Signals()

    assert 2 * 2 / 0.1 < tokens_per_second(slow, [batch, batch]) <= 2 / 0.01
