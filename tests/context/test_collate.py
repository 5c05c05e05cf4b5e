"""From examples and documents to batches: what is predicted, what is left out, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_llms

from limbeck.context.collate import Collate, Documents
from limbeck.context.host import Host
from limbeck.context.reading import Reading, plan_reading
from limbeck.core.check import LimbeckError
from limbeck.data.tasks import Episode
from limbeck.data.templates import Example

READING = Reading(length=4, limit=20, budget=30, context=60)
DECODER, SEQ2SEQ = Host("x", 16, positions=96), Host("x", 16, seq2seq=True, start=0)
TOKENIZER = tiny_llms.tokenizer()


def collate(host: Host = DECODER, **settings: Any) -> Collate:
    return Collate(TOKENIZER, host, replace(READING, **settings))


def text(ids: Any) -> str:
    return TOKENIZER.decode(ids)


def episode(rows: int = 4) -> Episode:
    task = tiny_llms.task()
    return Episode(tuple(task.train[:rows]), task.test[0])


def test_an_episode_predicts_the_answer_alone() -> None:
    batch = collate()([episode(), episode(6)])
    query = episode().query
    assert text(batch["ids"][0]) == f"{query.input} {query.output}"
    assert text(batch["targets"][0][batch["answer"][0]]) == f" {query.output}"
    assert text(batch["demos"][0][batch["demos_mask"][0]]) == "".join(f"{d.input} {d.output}" for d in episode().demos)
    assert batch["demos_mask"].sum(1).tolist() == [12, 18]
    assert batch["context"].shape == batch["demos"].shape


def test_teacher_and_distiller_may_read_different_numbers_of_demonstrations() -> None:
    batch = collate(budget=9)([episode()])
    assert (batch["demos"].shape[1], batch["context"].shape[1]) == (9, 12)
    assert collate(budget=9).used(episode().demos) == 3


def test_a_demonstration_that_cannot_be_cut_to_fit_is_not_counted() -> None:
    demos = [Example("t", "good film", "bad"), Example("t", "book", "one two three four five")]
    for budget, used in {3: 1, 7: 1, 8: 1, 9: 2}.items():  # the second one's answer alone takes 5
        found = collate(budget=budget)
        (ids,) = found.demos(demos)
        assert (len(ids), found.used(demos)) == ((9 if used == 2 else 3), used), budget


def test_an_encoder_decoder_starts_with_its_own_token_and_predicts_what_follows_the_input() -> None:
    batch = collate(SEQ2SEQ)([episode()])
    query = episode().query
    assert batch["ids"][0, 0] == 0
    assert text(batch["ids"][0, 1:]) == f"{query.input} {query.output}"
    assert text(batch["targets"][0][batch["answer"][0]]) == f" {query.output}"
    assert "encoder_ids" not in batch


def test_the_query_may_stand_on_the_encoders_side() -> None:
    batch = collate(SEQ2SEQ, query="encoder")([episode()])
    query = episode().query
    assert text(batch["encoder_ids"][0]) == query.input
    assert text(batch["ids"][0, 1:]) == f" {query.output}"
    assert batch["answer"].tolist() == [[True, False]]


def test_channel_swaps_input_and_output() -> None:
    batch = collate(channel=True)([episode()])
    query = episode().query
    assert text(batch["ids"][0]) == f"{query.output} {query.input}"
    assert text(batch["targets"][0][batch["answer"][0]]) == f" {query.input}"


def test_groups_split_the_demonstrations_in_order() -> None:
    batch = collate(groups=2)([episode(5), episode(4)])
    assert batch["demos"].shape == (2, 2, 9)
    assert batch["demos_mask"].sum(-1).tolist() == [[6, 9], [6, 6]]
    with pytest.raises(LimbeckError, match="1 demonstrations cannot be split into 2 groups"):
        collate(groups=2)([episode(1)])


def test_queries_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(LimbeckError, match="a query needs at least 2 tokens"):
        collate().split([5], 0)
    with pytest.raises(LimbeckError, match="the answer '' has no tokens"):
        collate().query("good film", "")
    with pytest.raises(LimbeckError, match="the list of demonstrations is empty"):
        collate().demos([])


def test_a_document_is_cut_at_four_fifths() -> None:
    documents = Documents(collate(), 96)
    batch = documents([list(range(5, 15)), list(range(5, 25))])
    assert batch["demos_mask"].sum(1).tolist() == [8, 16]
    assert batch["context"][0, :8].tolist() == list(range(5, 13))
    assert batch["ids"][0, :2].tolist() == [13, 14]
    assert batch["answer"].tolist() == [[True, False, False, False], [True, True, True, False]]  # never the first token
    seq2seq = Documents(collate(SEQ2SEQ))([list(range(5, 15))])
    assert seq2seq["ids"].tolist() == [[0, 13, 14]]
    assert seq2seq["answer"].tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("llm", "distiller", "longest"), [(96, None, 96), (2048, None, 1024), (96, 40, 46), (20, 96, 20)]
)
def test_a_document_is_no_longer_than_both_models_can_read(llm: int, distiller: int | None, longest: int) -> None:
    found = Documents(Collate(TOKENIZER, replace(DECODER, positions=llm), READING), distiller)
    assert found.longest == longest
    batch = found([list(range(5, 25)) * 100])
    assert batch["context"].shape[1] + batch["ids"].shape[1] == longest


def test_documents_in_groups() -> None:
    batch = Documents(collate(groups=3), 96)([list(range(5, 15))])
    assert batch["demos_mask"].sum(-1).tolist() == [[3, 3, 2]]


def test_short_documents_are_left_out_and_counted() -> None:
    documents = Documents(collate(), 96)
    rows, short = documents.tokenize(["good bad fine poor film book", "good bad", "one two three four five"], TOKENIZER)
    assert [row.tolist() for row in rows] == [TOKENIZER("good bad fine poor film book").input_ids]
    assert rows[0].dtype == np.int32
    assert short == 2
    with pytest.raises(LimbeckError, match="all 2 documents of the corpus are too short"):
        documents.tokenize(["good", "bad"], TOKENIZER)
    with pytest.raises(LimbeckError, match="share must lie between 0 and 1"):
        Documents(collate(), 96, share=1.0)
    with pytest.raises(LimbeckError, match="no document fits both LLM and distiller"):
        Documents(collate(length=95), 96)


def test_lengths_follow_the_models_and_the_paper() -> None:
    assert plan_reading(1024, 1024) == Reading()  # MEND at GPT-2's positions
    assert plan_reading(None, None, length=8) == Reading(length=8)  # T5 has no limit
    assert plan_reading(32_768, 1024) == Reading()
    small = plan_reading(96, 64, length=8)
    assert (small.limit, small.context, small.budget) == (24, 71, 56)
    assert plan_reading(96, 64, length=8, groups=3).vectors == 24


def test_an_example_without_options_is_an_example() -> None:
    demos = [Example("t", "good film", "bad")]
    assert text(collate().context(demos)) == "good film bad"
