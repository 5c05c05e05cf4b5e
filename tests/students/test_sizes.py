"""The 24 miniatures by name, and their parameters."""

import pytest
import torch
from transformers import BertModel

from limbeck.core.check import LimbeckError
from limbeck.students.sizes import MINIATURES, Size, miniature, miniature_config, parameters


def test_there_are_24_and_five_have_names():
    assert len(set(MINIATURES.values())) == 24
    assert miniature("bert-mini") == miniature("bert-4x256") == miniature("bert_uncased_L-4_H-256_A-4") == (4, 256)
    assert [miniature(f"bert-{name}") for name in ("tiny", "small", "medium", "base")] == [
        Size(2, 128),
        Size(4, 512),
        Size(8, 512),
        Size(12, 768),
    ]
    for other in ("6x384", "bert-5x128", "half", "a/bert-mini"):
        assert miniature(other) is None
    for wrong in ("uncased_L-5_H-128_A-2", "uncased_L-2_H-128_A-4"):
        with pytest.raises(LimbeckError, match="the miniatures have layers"):
            miniature(wrong)


@pytest.mark.parametrize("size", sorted(set(MINIATURES.values())))
def test_parameters_are_those_of_the_model(size):
    with torch.device("meta"):
        model = BertModel(miniature_config(size))
    assert sum(p.numel() for p in model.parameters()) == parameters(size)
    assert model.config.num_attention_heads == size.width // 64


def test_tiny_is_the_published_one():
    assert parameters(Size(2, 128)) + 2 * 128 + 2 == 4_386_178  # with a head of two classes
