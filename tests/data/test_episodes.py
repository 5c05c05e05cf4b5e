"""Pools and episodes: who is drawn, how often, and that nothing but (seed, index) decides."""

from collections import Counter

import pytest

from limbeck.core.check import LimbeckError
from limbeck.data.ablations import random_label, wrong_label
from limbeck.data.stream import Batches
from limbeck.data.tasks import Episodes, TaskPool, demonstrations
from limbeck.data.templates import Example


@pytest.fixture
def pool(make_task):
    return TaskPool([make_task("a", 30), make_task("b", 6), make_task("c", 12, options=False)])


def test_the_pool_numbers_all_rows(pool):
    assert len(pool) == 48
    assert [pool.place(i) for i in (0, 29, 30, 35, 36, 47)] == [(0, 0), (0, 29), (1, 0), (1, 5), (2, 0), (2, 11)]


def test_every_row_is_a_query_once_per_epoch_in_another_order(pool):
    stream = Episodes(pool, shots=4, seed=3)
    epochs = [
        [(e.query.task, e.query.input) for e in map(stream.__getitem__, range(k * 48, k * 48 + 48))] for k in (0, 1)
    ]
    assert len(set(epochs[0])) == 48
    assert set(epochs[0]) == set(epochs[1])
    assert epochs[0] != epochs[1]


def test_demonstrations_are_others_of_the_same_task_without_repetition(pool):
    for index in range(100):
        episode = Episodes(pool, shots=5, seed=1)[index]
        everyone = [episode.query, *episode.demos]
        assert len({example.input for example in everyone}) == 6
        assert {example.task for example in everyone} == {episode.query.task}


def test_demonstrations_are_drawn_uniformly(make_task):
    stream = Episodes(TaskPool([make_task("a", 11)]), shots=5, seed=0)
    seen = Counter(demo.input for i in range(2200) for demo in stream[i].demos)
    assert all(abs(count - 1000) < 150 for count in seen.values())  # 11000 draws over 11 rows, 5 standard deviations


def test_an_episode_depends_on_seed_and_index_alone(pool):
    one, other = Episodes(pool, shots=4, seed=5), Episodes(pool, shots=4, seed=5)
    backwards = {i: other[i] for i in reversed(range(60))}
    assert [one[i] for i in range(60)] == [backwards[i] for i in range(60)]
    assert [one[i] for i in range(60)] != [Episodes(pool, shots=4, seed=6)[i] for i in range(60)]


def test_the_same_query_gets_fresh_demonstrations(pool):
    stream = Episodes(pool, shots=4, seed=0)
    first = {stream[i].query: stream[i].demos for i in range(48)}
    second = {stream[i].query: stream[i].demos for i in range(48, 96)}
    assert sum(first[query] != second[query] for query in first) > 40


def test_the_stream_resumes(pool):
    stream = Episodes(pool, shots=4, seed=0)
    start = [next(iter(stream)) for _ in range(3)]
    again = Episodes(pool, shots=4, seed=0)
    again.load_state_dict(stream.state_dict())
    assert start == [stream[i] for i in range(3)]
    assert next(iter(again)) == stream[3]


def test_batches_of_episodes_go_on_where_they_stood(pool):
    make = lambda: Batches(Episodes(pool, 4, 2), lambda rows: {"rows": rows}, 5, shuffle=False)  # noqa: E731
    whole, resumed = make(), make()
    seen = [row for batch in whole.take(4) for row in batch["rows"]]
    resumed.load_state_dict({**whole.state_dict(), "position": 2})
    assert [row for batch in resumed.take(2) for row in batch["rows"]] == seen[10:]
    assert seen == [Episodes(pool, 4, 2)[i] for i in range(20)]


def test_the_cap_keeps_a_task_from_taking_over(make_task):
    pool = TaskPool([make_task("a", 100), make_task("b", 10)], cap=20)
    assert len(pool) == 30
    assert {e.query.task: 1 for e in map(Episodes(pool, 4).__getitem__, range(30))} == {"a": 1, "b": 1}


def test_noise_replaces_the_share_of_query_labels_and_nothing_else(make_task):
    pool = TaskPool([make_task("a", 40, labels=4)])
    clean, noisy = Episodes(pool, 4, 0), Episodes(pool, 4, 0, noise=0.5)
    changed = 0
    for i in range(800):
        assert noisy[i].demos == clean[i].demos
        assert noisy[i].query.input == clean[i].query.input
        changed += noisy[i].query.output != clean[i].query.output
    assert abs(changed / 800 - 0.5 * 3 / 4) < 0.07  # a random label is the true one in a quarter of all cases


@pytest.mark.parametrize("name", ["no_label", "no_input", "random_label", "wrong_label"])
def test_ablations_change_demonstrations_only(pool, name):
    clean, damaged = Episodes(pool, 4, 0), Episodes(pool, 4, 0, ablation=name)
    for i in range(30):
        assert damaged[i].query == clean[i].query
        for was, now in zip(clean[i].demos, damaged[i].demos, strict=True):
            assert now.input == ("" if name == "no_input" else was.input)
            assert now.output == "" if name == "no_label" else now.output.startswith("y")
            assert name != "wrong_label" or now.output != was.output
    changed = sum(w != n for i in range(30) for w, n in zip(clean[i].demos, damaged[i].demos, strict=True))
    assert changed == 120 if name != "random_label" else 40 < changed < 110


def test_free_form_labels_come_from_other_rows():
    import numpy as np

    rows = [Example("t", f"x{i}", f"y{i}") for i in range(5)]
    rng = np.random.default_rng(0)
    assert {random_label(rows[0], rows, rng).output for _ in range(200)} == {f"y{i}" for i in range(5)}
    assert {wrong_label(rows[0], rows, rng).output for _ in range(200)} == {f"y{i}" for i in range(1, 5)}
    with pytest.raises(LimbeckError, match="task 't' knows one answer only, 'y0'"):
        wrong_label(rows[0], rows[:1], rng)


def test_test_demonstrations_are_fixed_by_seed_and_task(make_task):
    task = make_task("a", 16)
    first = demonstrations(task, 16, seed=13)
    assert first == demonstrations(task, 16, seed=13)
    assert first != demonstrations(task, 16, seed=21)
    assert sorted(e.input for e in first) == sorted(e.input for e in task.train)
    assert len(demonstrations(task, 4, seed=13)) == 4
    assert all(e.output == "" for e in demonstrations(task, 4, ablation="no_label"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: TaskPool([]), "the pool has no tasks"),
        (lambda t: TaskPool([t("a", 0)]), "task 'a' has no training rows"),
        (lambda t: TaskPool([t("a", 3), t("a", 3)]), "two tasks of one name"),
        (lambda t: Episodes(TaskPool([t("a", 16)]), 16), "task 'a' has 16 training rows, but 16 .* need 17"),
        (lambda t: Episodes(TaskPool([t("a", 16)]), 0), "at least one demonstration, but shots is 0"),
        (lambda t: Episodes(TaskPool([t("a", 16)]), 4, noise=1.5), "noise is a probability, but got 1.5"),
        (lambda t: Episodes(TaskPool([t("a", 16)]), 4, ablation="nolabel"), "did you mean 'no_label'"),
        (lambda t: demonstrations(t("a", 8), 16), "task 'a' has 8 training rows, but 16 demonstrations"),
    ],
)
def test_mistakes_are_named(make_task, make, message):
    with pytest.raises(LimbeckError, match=message):
        make(make_task)


def test_several_queries_share_demonstrations_and_none_of_them_is_one(pool):
    plain, several = Episodes(pool, 4, 3), Episodes(pool, 4, 3, asked=2)
    for i in range(40):
        episode = several[i]
        assert len(set(episode.queries)) == 2
        assert episode.query == plain[i].query
        assert not set(episode.queries) & set(episode.demos)
        assert {q.task for q in episode.queries} == {episode.query.task}


def test_a_small_task_gives_as_many_queries_as_it_has(make_task):
    stream = Episodes(TaskPool([make_task("a", 7)]), shots=5, seed=0, asked=8)
    assert all(len(stream[i].queries) == 2 for i in range(10))


def test_every_query_may_be_noisy(pool):
    clean, noisy = Episodes(pool, 4, 0, asked=4), Episodes(pool, 4, 0, noise=1.0, asked=4)
    changed = [a.output != b.output for i in range(20) for a, b in zip(clean[i].queries, noisy[i].queries, strict=True)]
    assert 0.2 < sum(changed) / len(changed) < 0.9
