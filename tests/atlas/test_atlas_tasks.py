"""The atlas's tasks: what they ask, what their options are, and that no partition leaks."""

from __future__ import annotations

from random import Random

import pytest

from limbeck.atlas import kinds, tasks
from limbeck.core.check import LimbeckError


def first(kind: str) -> kinds.Spec:
    return next(spec for spec in tasks.specs() if spec.kind == kind)


def test_there_are_thousands_of_tasks_of_every_kind_with_different_names():
    names = [spec.name for spec in tasks.specs()]
    assert len(names) > 5000
    assert len(set(names)) == len(names)
    assert {spec.kind for spec in tasks.specs()} == set(kinds.KINDS)


@pytest.mark.parametrize(
    ("spec", "key", "output"),
    [
        (kinds.NameTask("territory", "en", "de"), "DE", "Deutschland"),
        (kinds.CodeTask("alpha3", "en"), "RO", "ROU"),
        (kinds.CodeTask("currency", "ro"), "JP", "JPY"),
    ],
)
def test_known_answers(spec, key, output):
    rows = {k: y for k, _, y in spec.pairs(Random(0), 10_000)}
    assert rows[key] == output


def test_formats_follow_the_locale():
    assert kinds.written("date", "long", "ro", "2026-11-20") == "20 noiembrie 2026"
    assert kinds.written("number", "decimal", "de", "1234567.25") == "1.234.567,25"
    assert kinds.written("amount", "standard", "en", "1234.5 EUR") == "€1,234.50"


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_rows_are_distinct_deterministic_and_hold_the_answer_among_different_options(kind):
    task, again = tasks.build(first(kind), 24), tasks.build(first(kind), 24)
    rows = [*task.train, *task.test]
    assert task.train == again.train
    assert len({row.input for row in rows}) == len(rows)
    for row in rows:
        assert row.output in row.options
        assert len(set(row.options)) == len(row.options) > 1


def test_classification_shares_its_labels_and_the_others_do_not():
    assert tasks.build(first("class"), 24).kind == "classification"
    assert tasks.build(first("name"), 24).kind == "multi-choice"


def test_labels_of_a_class_are_words_that_say_nothing_and_fresh_ones_may_be_given():
    task = kinds.class_task("category", "ro", ("territory", "script"))
    other = kinds.class_task("category", "ro", ("territory", "script"), ("apple", "river"))
    assert set(task.labels) <= set(kinds.LABELS)
    assert {y for _, _, y in other.pairs(Random(0), 8)} == {"apple", "river"}
    assert task.name == other.name


@pytest.mark.parametrize("name", tasks.PARTITIONS)
def test_no_test_task_was_trained_on_by_anybody(name):
    part = tasks.partition(name, train_tasks=12, test_tasks=4, examples=40)
    by_name = {spec.name: spec for spec in tasks.specs()}
    assert len(part.train) == 12
    assert len(part.test) == 4
    assert not any(tasks.is_held_out(by_name[task.name]) for task in part.train)
    assert all(tasks.is_held_out(by_name[task.name]) for task in part.test)


def test_partitions_separate_what_they_say():
    part = tasks.partition("hr_to_lr", train_tasks=20, test_tasks=5, examples=40)
    low = set(tasks.LOW)
    assert not any(set(task.name.replace("+", "-").split("-")) & low for task in part.train)
    assert all(set(task.name.replace("+", "-").split("-")) & low for task in part.test)
    part = tasks.partition("non_class_to_class", train_tasks=12, test_tasks=5, examples=40)
    assert {task.kind for task in part.train} == {"multi-choice"}
    assert {task.kind for task in part.test} == {"classification"}
    assert {t.name.split("-")[0] for t in tasks.partition("held_out_kind", 4, 4, 40).test} == {"amount"}


def test_the_seed_draws_rows_but_not_tasks():
    one, two = (tasks.partition("held_out_task", 3, 3, 40, seed) for seed in (0, 1))
    assert [t.name for t in one.test] == [t.name for t in two.test]
    assert one.test[0].test != two.test[0].test


def test_an_unknown_partition_is_named():
    with pytest.raises(LimbeckError, match="did you mean 'hr_to_lr'"):
        tasks.partition("hr_to_lrr")
