"""Reading tasks: MetaICL's files, and what is wrong with rows that are not."""

import pytest

from limbeck.core.check import LimbeckError
from limbeck.data.tasks import Task, read_examples, read_tasks, seeds
from limbeck.data.templates import Example


def row(x="a film", y="good", options=("good", "bad"), task="sst2"):
    return {"task": task, "input": x, "output": y, "options": list(options)}


def test_a_folder_is_read_recursively_and_splits_come_from_the_names(write, tmp_path):
    write("sst2/sst2_train.jsonl", row(), row("x"))
    write("sst2/sst2_dev.jsonl", row("d"))
    write("more/deep/copa_test.jsonl", row(options=("good", "so"), task="copa"), row("n", "p", ("p", "q"), "copa"))
    write("more/deep/free_train.jsonl", {"task": "free", "input": "i", "output": "o"})
    tasks = read_tasks(tmp_path)
    assert [task.name for task in tasks] == ["copa", "free", "sst2"]
    assert [task.kind for task in tasks] == ["multi-choice", "free-form", "classification"]
    copa, free, sst2 = tasks
    assert (len(sst2.train), len(sst2.dev), len(sst2.test)) == (2, 1, 0)
    assert sst2.train[0] == Example("sst2", "a film", "good", ("good", "bad"))
    assert copa.test[1].options == ("p", "q")
    assert free.train == [Example("free", "i", "o")]


def test_one_file_may_hold_several_tasks(write):
    tasks = read_tasks(write("all_train.jsonl", row(), row(task="other")))
    assert [(task.name, len(task.train)) for task in tasks] == [("other", 1), ("sst2", 1)]


def test_a_file_may_be_named_by_its_split_alone(write):
    assert len(read_tasks(write("test.jsonl", row()))[0].test) == 1


def test_seed_and_shots_choose_among_metaicl_files(write, tmp_path):
    for seed in (13, 100):
        write(f"sst2/sst2_16_{seed}_train.jsonl", row(f"seed {seed}"))
        write(f"sst2/sst2_16_{seed}_test.jsonl", row("test"))
    write("sst2/sst2_4_13_train.jsonl", row("4 shots"))
    write("dbpedia_14/dbpedia_14_16_13_train.jsonl", row(task="dbpedia_14"))
    assert seeds(tmp_path) == [13, 100]
    dbpedia, sst2 = read_tasks(tmp_path, seed=13, shots=16)
    assert dbpedia.name == "dbpedia_14"
    assert [example.input for example in sst2.train] == ["seed 13"]
    with pytest.raises(
        LimbeckError, match=r"task 'sst2' has a (train|test) file already, .*; choose with seed and shots"
    ):
        read_tasks(tmp_path)
    with pytest.raises(LimbeckError, match="no file has seed 7 and 16 shots"):
        read_tasks(tmp_path, seed=7, shots=16)


def test_the_order_of_options_does_not_make_a_choice(write):
    path = write("a_train.jsonl", row(options=("good", "bad")), row(options=("bad", "good")))
    assert read_tasks(path)[0].kind == "classification"


def test_a_task_without_rows_is_free_form():
    assert Task("empty").kind == "free-form"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"task": "t", "input": "x"}, "a_train.jsonl:2: the field 'output' is missing; the row has 'task', 'input'"),
        (row(x=3), "a_train.jsonl:2: the field 'input' must be a string, but got a number"),
        (row(x=" "), "a_train.jsonl:2: the field 'input' is empty"),
        (row(y="", options=()), "a_train.jsonl:2: the field 'output' is empty"),
        (row(task=""), "a_train.jsonl:2: the field 'task' is empty"),
        (row(y="fine"), r"a_train.jsonl:2: the output 'fine' is not among the options \['good', 'bad'\]"),
        (row(options=("good",)), "a_train.jsonl:2: there is one option, 'good'"),
        (row(options=("good", "bad", "good")), "a_train.jsonl:2: the option 'good' is given more than once"),
        (row(options=("good", " good")), "is given more than once"),
        (row(options=("good", "")), "a_train.jsonl:2: an option is empty"),
        ({**row(), "options": "good"}, "a_train.jsonl:2: options must be a list of strings"),
        ({**row(), "options": ["good", 3]}, "a_train.jsonl:2: options must be a list of strings"),
        (row(options=()), r"a_train.jsonl: task 'sst2' has options in some rows only"),
        ("{", "a_train.jsonl:2: expected one JSON object per line"),
    ],
)
def test_a_bad_row_names_file_and_line(write, bad, message):
    with pytest.raises(LimbeckError, match=message):
        read_tasks(write("a_train.jsonl", row(), bad))


def test_an_unknown_split_is_refused(write):
    with pytest.raises(LimbeckError, match=r"expected one of train, dev, test, but got 'tset'; did you mean 'test'"):
        read_tasks(write("a_tset.jsonl", row()))


def test_other_files_in_a_folder_are_passed_over(write, tmp_path):
    write("config.json", "{}")
    write("a_train.jsonl", row())
    assert len(read_tasks(tmp_path)) == 1
    with pytest.raises(LimbeckError, match=r"config.json: expected a file that ends in .jsonl, but got '.json'"):
        read_tasks(tmp_path / "config.json")


def test_demonstrations_need_no_split_in_the_name(write):
    assert read_examples(write("demos.jsonl", row())) == [Example("sst2", "a film", "good", ("good", "bad"))]
