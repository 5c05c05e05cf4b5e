"""Several queries in a row: the same numbers as in rows of their own, and nothing else gets through."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_llms
import torch
from torch import Tensor
from transformers import GPTNeoConfig, GPTNeoForCausalLM, MistralConfig, MistralForCausalLM

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError
from limbeck.core.stage import freeze
from limbeck.data.stream import lengths_mask, pad
from limbeck.sources.segments import apart
from limbeck.sources.views import full_context, no_context

DECODERS = [kind for kind in tiny_llms.KINDS if kind != "t5"]
CONTEXTS = [[5, 6, 7, 8, 9, 10], [11, 12]]
QUERIES = [[[20, 21], [22, 23, 24, 25], [26]], [[27, 28, 29], [30, 31]]]


def several() -> Batch:
    rows = [[token for query in row for token in query] for row in QUERIES]
    segments = [[number for number, query in enumerate(row, 1) for _ in query] for row in QUERIES]
    batch = {"ids": pad(rows), "mask": lengths_mask(rows), "segment": pad(segments)}
    return batch | {"context": pad(CONTEXTS), "context_mask": lengths_mask(CONTEXTS)}


def alone(model: Any, context: list[int], query: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[*context, *query]])).logits[0, len(context) :]


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_queries_in_a_row_are_as_queries_alone(kind: str, attention: str) -> None:
    model = freeze(tiny_llms.build(kind))
    model.set_attn_implementation(attention)
    said = full_context(model)(several()).logits_at()
    for row, context in enumerate(CONTEXTS):
        found = torch.cat([alone(model, context, query) for query in QUERIES[row]])
        assert torch.allclose(said[row, : len(found)], found, atol=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_without_a_context_too(kind: str) -> None:
    model = freeze(tiny_llms.build(kind))
    said = no_context(model)(several()).logits_at()
    found = torch.cat([alone(model, [], query) for query in QUERIES[0]])
    assert torch.allclose(said[0, : len(found)], found, atol=1e-5)


def test_a_short_row_beside_a_long_one_takes_no_more_positions() -> None:
    """The long row has more tokens than the model has positions, its queries do not; the other is mostly padding."""
    model = freeze(tiny_llms.build("gpt2", positions=24))
    sizes = [[12, 12, 12], [2, 2]]
    rows = [[5 + i % 20 for size in row for i in range(size)] for row in sizes]
    segments = [[number for number, size in enumerate(row, 1) for _ in range(size)] for row in sizes]
    contexts = [[5, 6, 7, 8], [9]]
    batch = {"ids": pad(rows), "mask": lengths_mask(rows), "segment": pad(segments)}
    batch |= {"context": pad(contexts), "context_mask": lengths_mask(contexts)}
    said = full_context(model)(batch).logits_at()
    assert torch.allclose(said[1, :2], alone(model, contexts[1], rows[1][:2]), atol=1e-5)
    assert torch.allclose(said[0, 24:36], alone(model, contexts[0], rows[0][24:]), atol=1e-5)


def test_layers_that_see_a_few_tokens_are_refused_by_any_name() -> None:
    model = freeze(
        GPTNeoForCausalLM(
            GPTNeoConfig(
                vocab_size=40,
                hidden_size=8,
                num_layers=2,
                num_heads=1,
                attention_types=[[["global", "local"], 1]],
                window_size=8,
                max_position_embeddings=64,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    )
    with pytest.raises(LimbeckError, match="GPTNeoForCausalLM sees 8 tokens at a time"):
        full_context(model)(several())


def test_a_layer_with_a_memory_is_found_by_the_trial() -> None:
    model = tiny_llms.build("llama")
    run = model.model.layers[0].forward
    model.model.layers[0].forward = lambda states, **named: run(states, **named) + states.cumsum(1)
    with pytest.raises(LimbeckError, match="lets a text see the one before it"):
        full_context(freeze(model))(several())


def test_an_encoder_decoder_reads_one_query_per_row() -> None:
    with pytest.raises(LimbeckError, match="one query per"):
        full_context(freeze(tiny_llms.build("t5")))(several())


def test_a_window_shorter_than_the_row_is_refused() -> None:
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = MistralForCausalLM(MistralConfig(vocab_size=40, num_key_value_heads=1, sliding_window=4, **size))
    with pytest.raises(LimbeckError, match="sees 4 tokens at a time"):
        apart(model, torch.ones(1, 5, dtype=torch.long), torch.ones(1, 5, dtype=torch.bool))


def test_a_model_without_position_ids_is_refused() -> None:
    with pytest.raises(LimbeckError, match="takes no position_ids"):
        apart(torch.nn.Linear(2, 2), torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool))
