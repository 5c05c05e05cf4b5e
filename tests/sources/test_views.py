"""Views of one frozen model: the same numbers as the model itself gives, whatever the padding."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_llms
import torch
from torch import Tensor

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError
from limbeck.core.stage import freeze
from limbeck.data.stream import lengths_mask, pad
from limbeck.sources.views import compressed_context, full_context, gather, no_context, pack

KINDS = pytest.mark.parametrize("kind", tiny_llms.KINDS)
CONTEXTS = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16]]
QUERIES = [[20, 21], [22, 23, 24, 25, 26], [27, 28, 29]]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {kind: freeze(tiny_llms.build(kind)) for kind in tiny_llms.KINDS}


def batch_of(contexts: list[list[int]], queries: list[list[int]], **more: Tensor) -> Batch:
    batch = {"ids": pad(queries), "mask": lengths_mask(queries)}
    return {**batch, "context": pad(contexts), "context_mask": lengths_mask(contexts), **more}


def itself(model: Any, context: list[int], query: list[int]) -> Tensor:
    """Logits of the model's own forward pass at the query's positions."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            return model(input_ids=torch.tensor([context]), decoder_input_ids=torch.tensor([query])).logits[0]
        return model(torch.tensor([[*context, *query]])).logits[0, len(context) :]


def test_pack_closes_the_gap_and_says_where() -> None:
    left, right = torch.tensor([[1, 2, 0], [3, 0, 0]]), torch.tensor([[4, 5], [6, 0]])
    joined, mask, where = pack(left, left > 0, right, right > 0)
    assert joined[0].tolist() == [1, 2, 4, 5]
    assert joined[1][mask[1]].tolist() == [3, 6]
    assert mask.sum(1).tolist() == [4, 2]
    assert where.tolist() == [[2, 3], [1, 2]]
    assert gather(joined[..., None], where)[0, :, 0].tolist() == [4, 5]


def test_pack_of_nothing_is_the_other_piece() -> None:
    right = torch.tensor([[4, 5]])
    joined, mask, where = pack(right[:, :0], right[:, :0] > 0, right, right > 0)
    assert joined.tolist() == [[4, 5]]
    assert mask.all()
    assert where.tolist() == [[0, 1]]


def test_pack_passes_gradients_to_both_pieces() -> None:
    left, right = torch.ones(1, 3, 2, requires_grad=True), torch.ones(1, 2, 2, requires_grad=True)
    joined, mask, _ = pack(left, torch.tensor([[True, True, False]]), right, torch.ones(1, 2, dtype=torch.bool))
    joined[mask].sum().backward()
    assert left.grad is not None
    assert left.grad[0, :, 0].tolist() == [1, 1, 0]
    assert right.grad is not None
    assert right.grad.eq(1).all()


@KINDS
def test_full_context_is_the_model_reading_demonstrations_and_query(models: dict[str, Any], kind: str) -> None:
    model, batch = models[kind], batch_of(CONTEXTS, QUERIES)
    said = full_context(model)(batch)
    assert said.logits is None  # nobody has computed b t v
    logits = said.logits_at()
    for row, (context, query) in enumerate(zip(CONTEXTS, QUERIES, strict=True)):
        torch.testing.assert_close(logits[row, : len(query)], itself(model, context, query), atol=1e-5, rtol=1e-5)


@KINDS
def test_vectors_that_are_the_demonstrations_give_the_same(models: dict[str, Any], kind: str) -> None:
    model = models[kind]
    one = batch_of(CONTEXTS[:1], QUERIES[:1])
    vectors = model.get_input_embeddings()(one["context"])
    said = compressed_context(model, lambda batch: vectors)(one).logits_at()
    torch.testing.assert_close(said, full_context(model)(one).logits_at(), atol=1e-5, rtol=1e-5)


@KINDS
def test_padding_of_other_rows_changes_nothing(models: dict[str, Any], kind: str) -> None:
    model, vectors = models[kind], torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0))
    for view in (full_context(model), compressed_context(model, lambda batch: vectors), no_context(model)):
        together = view(batch_of(CONTEXTS, QUERIES)).logits_at()
        for row, query in enumerate(QUERIES):
            alone = view(batch_of(CONTEXTS[row : row + 1], [query])).logits_at()[0]
            torch.testing.assert_close(together[row, : len(query)], alone, atol=1e-5, rtol=1e-5, msg=f"{view}")


@KINDS
def test_no_context_is_the_model_on_the_query(models: dict[str, Any], kind: str) -> None:
    model = models[kind]
    end = [model.config.eos_token_id] if kind == "t5" else []
    said = no_context(model)(batch_of(CONTEXTS, QUERIES)).logits_at()
    torch.testing.assert_close(said[1], itself(model, end, QUERIES[1]), atol=1e-5, rtol=1e-5)


@KINDS
def test_gradients_reach_the_vectors_and_not_the_model(models: dict[str, Any], kind: str) -> None:
    vectors = torch.randn(3, 2, 16, requires_grad=True)
    batch = batch_of(CONTEXTS, QUERIES)
    compressed_context(models[kind], lambda _: vectors)(batch).logits_at(batch["mask"]).logsumexp(-1).sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().amax(-1).gt(0).all()
    assert all(parameter.grad is None for parameter in models[kind].parameters())


def test_a_query_on_the_encoders_side_follows_the_context(models: dict[str, Any]) -> None:
    model, inputs = models["t5"], [[30, 31], [32], [33, 34, 35]]
    more = {"encoder_ids": pad(inputs), "encoder_mask": lengths_mask(inputs)}
    said = full_context(model)(batch_of(CONTEXTS, QUERIES, **more)).logits_at()
    for row, query in enumerate(QUERIES):
        expected = itself(model, CONTEXTS[row] + inputs[row], query)
        torch.testing.assert_close(said[row, : len(query)], expected, atol=1e-5, rtol=1e-5)


def test_vectors_in_place_of_encoder_states(models: dict[str, Any]) -> None:
    model, batch = models["t5"], batch_of(CONTEXTS[:2], QUERIES[:2])
    with torch.no_grad():
        states = model.get_encoder()(input_ids=torch.tensor([CONTEXTS[0]])).last_hidden_state
    said = compressed_context(model, lambda _: states, enter="states")(batch).logits_at()
    torch.testing.assert_close(said[1], itself(model, CONTEXTS[0], QUERIES[1]), atol=1e-5, rtol=1e-5)
    batch |= {"encoder_ids": batch["ids"], "encoder_mask": batch["mask"]}
    with pytest.raises(LimbeckError, match="leave no room for a query"):
        compressed_context(model, lambda _: states, enter="states")(batch)


def test_a_model_in_half_precision_takes_vectors_in_full(models: dict[str, Any]) -> None:
    half = tiny_llms.build("llama").to(torch.bfloat16)
    vectors = torch.randn(1, 3, 16)
    batch = batch_of(CONTEXTS, QUERIES)
    said = compressed_context(half, lambda _: vectors)(batch).logits_at(batch["mask"])
    assert said.dtype == torch.bfloat16
    full = compressed_context(models["llama"], lambda _: vectors)(batch).logits_at(batch["mask"])
    assert (said.float() - full).abs().max() < 0.1 * full.abs().max()


def test_wrong_vectors_are_refused(models: dict[str, Any]) -> None:
    batch = batch_of(CONTEXTS, QUERIES)
    with pytest.raises(LimbeckError, match=r"\(rows, length, 16\), but got \(1, 3, 8\)"):
        compressed_context(models["gpt2"], lambda _: torch.randn(1, 3, 8))(batch)
    with pytest.raises(LimbeckError, match="2 contexts for 3 queries"):
        compressed_context(models["gpt2"], lambda _: torch.randn(2, 3, 16))(batch)


def test_more_than_the_models_positions_is_refused(models: dict[str, Any]) -> None:
    with pytest.raises(LimbeckError, match="take 98 positions, but GPT2LMHeadModel has 96"):
        compressed_context(models["gpt2"], lambda _: torch.randn(1, 93, 16))(batch_of(CONTEXTS, QUERIES))
    compressed_context(models["t5"], lambda _: torch.randn(1, 200, 16))(batch_of(CONTEXTS, QUERIES))  # no limit


def test_views_print_what_they_are(models: dict[str, Any]) -> None:
    assert repr(full_context(models["gpt2"])) == "full_context(GPT2LMHeadModel)"
