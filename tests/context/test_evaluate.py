"""Contexts side by side: the same demonstrations and queries, partitions by name, one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_llms
import torch

from limbeck.context.answer import Answerer, alone, behind_text, behind_vectors
from limbeck.context.backbone import as_backbone
from limbeck.context.distiller import Distiller
from limbeck.context.evaluate import Result, compare, makers, result_table, split_tasks
from limbeck.core.check import LimbeckError
from limbeck.data.tasks import Task, demonstrations, read_tasks
from limbeck.data.templates import Example


def toy(kind: str = "gpt2") -> tuple[Any, Distiller]:
    lm = tiny_llms.build(kind)
    backbone = as_backbone(tiny_llms.build(kind, width=8, layers=1, seed=1), kind == "t5")
    settings = {"length": 3, "limit": 20, "budget": 40, "context": 60}
    return lm, Distiller.build(lm, "nowhere", tiny_llms.tokenizer(), backbone, **settings)


@pytest.mark.parametrize("kind", tiny_llms.KINDS)
def test_scores_are_the_models_own_log_probabilities(kind: str) -> None:
    lm, distiller = toy(kind)
    task, tokenizer = tiny_llms.task(), tiny_llms.tokenizer()
    demos = demonstrations(task, 4)
    collate = distiller.collate()
    found = behind_text(lm, tokenizer, collate, demos).scores(task.test[:2])
    for row, query in enumerate(task.test[:2]):
        for column, option in enumerate(query.options):
            ids, prompt = tokenizer(query.input).input_ids, len(tokenizer(query.input).input_ids)
            ids = ids + tokenizer(f" {option}").input_ids
            with torch.no_grad():
                if kind == "t5":
                    said = lm(
                        input_ids=torch.tensor([collate.context(demos)]), decoder_input_ids=torch.tensor([[0, *ids]])
                    ).logits[0, prompt]
                else:
                    said = lm(torch.tensor([collate.context(demos) + ids])).logits[0, -2]
            assert found[row][column].item() == pytest.approx(said.log_softmax(-1)[ids[-1]].item(), abs=1e-4)


def test_answers_mix_options_and_free_text() -> None:
    lm, distiller = toy()
    answerer = alone(lm, tiny_llms.tokenizer(), distiller.collate())
    queries = [Example("t", "good film", "x"), Example("t", "good film", "good", ("good", "bad"))]
    free, chosen = answerer.answers(queries, tokens=3)
    assert chosen == answerer.complete("good film", ("good", "bad"))
    assert free == answerer.complete("good film", tokens=3)
    with pytest.raises(LimbeckError, match="choosing needs at least two options"):
        answerer.score("good film", ["good"])


def test_every_context_sees_the_same_demonstrations_and_queries() -> None:
    lm, distiller = toy()
    usual, seen = makers(lm, tiny_llms.tokenizer(), {"MEND": distiller}), []

    def watched(demos: Any) -> Answerer:
        seen.append(tuple(demos))
        return behind_vectors(distiller.distill(demos), lm, distiller.tokenizer)

    results = compare({**usual, "again": watched}, [tiny_llms.task()], shots=4, seeds=(0, 1), queries=6)
    assert [r.context for r in results] == ["zero-shot", "ICL", "MEND", "again"] * 2
    assert [len(r.answers) for r in results] == [6] * 8
    assert seen == [demonstrations(tiny_llms.task(), 4, seed) for seed in (0, 1)]
    by_name = {r.context: r for r in results[:4]}
    assert by_name["again"].answers == by_name["MEND"].answers
    assert [r.positions for r in results[:3]] == [0, 12, 3]
    assert by_name["MEND"].cache_bytes == by_name["ICL"].cache_bytes / 4
    assert by_name["zero-shot"].flops < by_name["MEND"].flops < by_name["ICL"].flops
    assert results[0].answers == results[4].answers  # zero-shot knows no demonstrations


def test_a_task_without_queries_is_refused() -> None:
    lm, distiller = toy()
    task = Task("empty", tiny_llms.task().train)
    with pytest.raises(LimbeckError, match="task 'empty' has neither test nor dev rows"):
        compare(makers(lm, distiller.tokenizer, {"MEND": distiller}), [task], shots=4)


def test_the_table_averages_tasks_and_spreads_seeds() -> None:
    scores = {("a", 0): 0.5, ("b", 0): 0.7, ("a", 1): 0.1, ("b", 1): 0.3}
    results = [Result("MEND", "p", task, seed, s, 4, 2e6, 3000, 0.002) for (task, seed), s in scores.items()]
    table = result_table(results)
    assert table.cells["p"]["MEND"] == pytest.approx([0.6, 0.2])
    costs = [table.cells[f"p {name}"]["MEND"] for name in ("positions", "MFLOP", "KV kB", "ms")]
    assert costs == [[4], [2], [3], [2]]


def test_partitions_of_a_folder(tmp_path: Path) -> None:
    folder = tiny_llms.write_tasks(tmp_path / "tasks", ("taste", "tone", "topic"))
    tasks = read_tasks(folder)
    assert [task.name for task in split_tasks(tasks, "all", folder).train] == ["taste", "tone", "topic"]
    for place in ("tasks/partitions", "config"):
        path = tmp_path / place / "one.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"train": ["tone"], "test": ["topic"]}))
        split = split_tasks(tasks, "one", folder)
        assert ([t.name for t in split.train], [t.name for t in split.test]) == (["tone"], ["topic"])
        path.unlink()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"train": ["tone"], "test": ["tone"]}, r"\['tone'\] is in train and in test"),
        ({"train": ["tone"], "test": ["topics"]}, r"no data for the task 'topics'; did you mean 'topic'\?"),
        ({"train": ["tone"]}, "expected an object with the lists 'train' and 'test'"),
        (["tone"], "expected an object with the lists 'train' and 'test'"),
    ],
)
def test_wrong_partitions_are_refused(said: Any, message: str, tmp_path: Path) -> None:
    folder = tiny_llms.write_tasks(tmp_path / "tasks", ("taste", "tone", "topic"))
    (folder / "partitions").mkdir()
    (folder / "partitions" / "one.json").write_text(json.dumps(said))
    with pytest.raises(LimbeckError, match=message):
        split_tasks([tiny_llms.task(name) for name in ("taste", "tone", "topic")], "one", folder)
