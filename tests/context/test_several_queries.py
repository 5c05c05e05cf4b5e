"""Several queries for one set of demonstrations: the loss is that of one query per row, in fewer passes."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_llms
import torch

from limbeck.context.distiller import Distiller
from limbeck.context.streams import episode_stream
from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError
from limbeck.core.stage import freeze
from limbeck.core.terms import Clock, count
from limbeck.data.tasks import Episode
from limbeck.methods.context.mend import Config, mend_step, second_goal


def distiller_for(kind: str) -> tuple[Any, Distiller]:
    lm = freeze(tiny_llms.build(kind))
    backbone = tiny_llms.build(kind, seed=1)
    backbone = backbone.get_encoder() if lm.config.is_encoder_decoder else backbone.base_model
    return lm, Distiller.build(lm, "x", tiny_llms.tokenizer(), backbone, length=3, limit=20, budget=30, context=40)


def episodes() -> list[Episode]:
    rows = tiny_llms.task().train
    return [Episode(tuple(rows[:4]), rows[4], (rows[5], rows[6])), Episode(tuple(rows[3:8]), rows[0], (rows[1],))]


def apart(found: list[Episode]) -> list[Episode]:
    return [Episode(episode.demos, query) for episode in found for query in episode.queries]


def means(lm: Any, distiller: Distiller, batch: Batch) -> tuple[dict[str, float], torch.Tensor]:
    terms = mend_step(lm, distiller, second_goal(Config()))(batch, Clock(0, 1))
    found = {name: term.sum / count(batch, term.unit) for name, term in terms.items()}
    (gradient,) = torch.autograd.grad(sum(found.values()), distiller.placeholders)
    return {name: value.item() for name, value in found.items()}, gradient


@pytest.mark.parametrize("kind", [kind for kind in tiny_llms.KINDS if kind != "t5"])
def test_one_row_is_as_good_as_several(kind: str) -> None:
    lm, distiller = distiller_for(kind)
    collate = distiller.collate()
    together, gradient = means(lm, distiller, collate(episodes()))
    alone, expected = means(lm, distiller, collate(apart(episodes())))
    assert together == pytest.approx(alone, rel=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_the_first_token_of_a_query_is_never_predicted_from_the_query_before() -> None:
    _, distiller = distiller_for("llama")
    batch = distiller.collate()(episodes())
    last = (batch["segment"][:, :-1] != batch["segment"][:, 1:]) & batch["mask"][:, :-1]
    assert last.any()
    assert not batch["answer"][:, :-1][last].any()


def test_an_encoder_decoder_is_refused() -> None:
    lm, distiller = distiller_for("t5")
    with pytest.raises(LimbeckError, match="one query per"):
        means(lm, distiller, distiller.collate()(episodes()))


def test_the_stream_asks_as_many_as_it_is_told() -> None:
    _, distiller = distiller_for("llama")
    batch = episode_stream(distiller, [tiny_llms.task()], 2, shots=3, asked=3).take(1)[0]
    assert batch["segment"].max(1).values.tolist() == [3, 3]
