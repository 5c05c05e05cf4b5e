"""Prompt tuning: the vectors alone move, by the gradient of the answer's loss, and the task gets easier."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_llms
import torch

from limbeck.context.collate import Collate
from limbeck.context.host import Host
from limbeck.context.reading import Reading
from limbeck.context.streams import query_stream
from limbeck.core.signals import Signals
from limbeck.core.stage import freeze
from limbeck.core.terms import Clock
from limbeck.methods.context.prompt_tuning import Config, FreeVectors, prompt_tuning
from limbeck.objectives.tokens import hard
from limbeck.sources.views import compressed_context


def collate_for(lm: Any) -> Collate:
    return Collate(tiny_llms.tokenizer(), Host.of(lm, "nowhere"), Reading(length=4, limit=20, budget=40, context=60))


def loss(lm: Any, vectors: torch.Tensor, collate: Collate) -> float:
    batch = query_stream(collate, tiny_llms.task().train, 12).at(0)
    with torch.no_grad():
        said = hard()(compressed_context(lm, lambda _: vectors[None])(batch), Signals(), batch, Clock(0, 1))["hard"]
    return said.sum.item() / batch["answer"].sum().item()


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_tuned_vectors_answer_better_and_nothing_else_moves(kind: str) -> None:
    lm = tiny_llms.build(kind)
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    collate, cfg = collate_for(lm), Config(length=4, steps=30, batch=12, lr=0.1)
    start = FreeVectors(lm.get_input_embeddings().weight, 4).vectors.detach()
    tuned = prompt_tuning(lm, collate, tiny_llms.task().train, cfg)
    assert tuned.tensor.shape == (4, 16)
    assert loss(lm, tuned.tensor, collate) < 0.95 * loss(lm, start, collate)
    assert all(torch.equal(before[name], value) for name, value in lm.state_dict().items())


def test_the_gradient_is_that_of_the_loss_written_out() -> None:
    lm = freeze(tiny_llms.build("gpt2"))
    collate, free = collate_for(lm), FreeVectors(lm.get_input_embeddings().weight, 3)
    batch = query_stream(collate, tiny_llms.task().train, 1).at(0)
    said = hard()(compressed_context(lm, lambda _: free())(batch), Signals(), batch, Clock(0, 1))["hard"]
    (ours,) = torch.autograd.grad(said.sum, [free.vectors])
    ids = batch["ids"]
    embeds = torch.cat([free(), lm.get_input_embeddings()(ids)], 1)
    logits = lm(inputs_embeds=embeds).logits[0, 3:]
    position = int(batch["answer"][0].nonzero()[0])
    expected = -logits[position].log_softmax(-1)[ids[0, position + 1]]
    torch.testing.assert_close(ours, torch.autograd.grad(expected, [free.vectors])[0], atol=1e-6, rtol=1e-4)


def test_vectors_begin_as_embeddings_of_tokens() -> None:
    table = torch.randn(300, 8)
    free = FreeVectors(table, 40)
    found = [(table == row).all(1).nonzero()[0].item() for row in free.vectors]
    assert min(found) >= 100
    assert torch.equal(free().squeeze(0), free.vectors)
    assert not torch.equal(free.vectors, FreeVectors(table, 40, seed=1).vectors)
