"""Tables of numbers or texts with something to predict."""

import json

import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.data.table import parted, plain_batches, read_table, relabelled, standardised, table_batches


def write(path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_csv_with_numbers_to_predict(tmp_path):
    table = read_table(write(tmp_path / "a.csv", 'size,age,score\n1,2,0.5\n"3",4,1.25\n'))
    assert table.numbers.tolist() == [[1, 2], [3, 4]]
    assert (table.truth.tolist(), table.classes, table.texts) == ([[0.5], [1.25]], None, None)


def test_a_tsv_with_classes_and_a_column_of_ones_own(tmp_path):
    table = read_table(write(tmp_path / "a.tsv", "kind\tx\nb\t1\na\t2\nb\t3\n"), target="kind")
    assert (table.classes, table.truth.tolist()) == (["a", "b"], [[0, 1], [1, 0], [0, 1]])


def test_whole_numbers_are_classes_in_their_order_unless_asked_otherwise(tmp_path):
    rows = [{"x": 0.5 * i, "label": [10, 9, 2][i % 3]} for i in range(6)]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert read_table(path).classes == ["2", "9", "10"]
    table = read_table(path, predicted="number")
    assert (table.classes, table.truth[:3, 0].tolist()) == (None, [10, 9, 2])


def test_texts_and_pairs_of_texts(tmp_path):
    rows = [{"sentence1": "a b", "sentence2": "c", "score": 0.5 * i} for i in range(3)]
    table = read_table(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert table.texts == ["a b c"] * 3
    assert table.classes is None
    with pytest.raises(LimbeckError, match="turn them into numbers first"):
        _ = table.numbers


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.csv", "x,label\n1,0\n2\n", r"a\.csv:3: expected 2 cells, as in line 1; got 1"),
        ("a.csv", "x,label\n1,0\nred,1\n", r"a\.csv:3: the column 'x' must hold numbers, but got 'red'"),
        ("a.csv", "x,label\nnan,0\n2,1\n", r"a\.csv:2: the column 'x' must hold numbers, but got 'nan'"),
        ("a.csv", "x,y\n1,a\n1,a\n", "expected rows of two classes at least, but all are 'a'"),
        ("a.csv", "x,y\n1,a\n1,\n", r"a\.csv:3: the class to predict is missing"),
        ("a.csv", "x,z\n1,2\n", r"a\.csv:2: the column 'label' is missing; the row has x, z; name --target"),
        ("a.csv", "y\n1\n2\n", "no column besides 'y'"),
        ("a.csv", "", "a line of column names"),
        ("a.csv", "x,y\n", "a line of column names and rows"),
        ("a.jsonl", '{"text": 3, "label": "a"}\n{"text": "b", "label": "c"}', r"a\.jsonl:1: the column 'text' must"),
        ("a.doc", "x", "expected a file that ends in"),
    ],
)
def test_what_is_refused(tmp_path, name, text, match):
    with pytest.raises(LimbeckError, match=match):
        read_table(write(tmp_path / name, text))


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(LimbeckError, match="no such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"x,y\n\xff,1\n")
    with pytest.raises(LimbeckError, match="expected UTF-8"):
        read_table(tmp_path / "b.csv")


def many(tmp_path, size: int = 50):
    lines = [f"{i},{i % 7},5,{i % 3}" for i in range(size)]
    return read_table(write(tmp_path / "a.csv", "\n".join(["x,z,same,label", *lines])))


def test_parts_hold_every_row_once(tmp_path):
    parts = parted(many(tmp_path))
    assert [len(part.truth) for part in parts] == [30, 10, 10]
    assert sorted(torch.cat([part.numbers[:, 0] for part in parts]).tolist()) == list(range(50))
    assert torch.equal(parted(many(tmp_path), seed=0)[0].numbers, parts[0].numbers)
    with pytest.raises(LimbeckError, match="5 rows are too few"):
        parted(many(tmp_path, 5))


def test_the_first_table_sets_the_scale(tmp_path):
    first, _, last = standardised(parted(many(tmp_path)))
    torch.testing.assert_close(first.numbers.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(first.numbers.std(0, correction=0)[:2], torch.ones(2, dtype=torch.float64))
    assert (first.numbers[:, 2] == 0).all()
    assert last.numbers[:, 0].mean() != 0
    assert set(first.truth.flatten().tolist()) == {0.0, 1.0}


def test_a_share_of_labels_is_made_wrong():
    truth = torch.eye(4)[torch.arange(40) % 4]
    wrong = relabelled(truth, 0.25, seed=1)
    assert int((wrong.argmax(1) != truth.argmax(1)).sum()) == 10
    assert torch.equal(wrong.sum(1), torch.ones(40))
    assert torch.equal(relabelled(truth, 0.0), truth)
    with pytest.raises(LimbeckError, match=r"--noise 1\.5"):
        relabelled(truth, 1.5)


def test_batches_of_a_table_and_of_its_texts(tmp_path):
    table = many(tmp_path)
    batch = table_batches(table.numbers, table.truth, 8).take(1)[0]
    assert {name: tuple(value.shape) for name, value in batch.items()} == {"values": (8, 3), "truth": (8, 3)}

    class Words:
        pad_token_id = 9

        def __call__(self, texts, **settings):
            return {"input_ids": [[len(word) for word in text.split()] for text in texts]}

    first, second = plain_batches(["a", "bb c", "ddd"], Words(), batch=2)
    assert first["ids"].tolist() == [[1, 9], [2, 1]]
    assert (first["mask"].tolist(), second["ids"].tolist()) == ([[True, False], [True, True]], [[3]])


def test_tables_that_are_hardly_any(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,label\n1,2.5\n\n3,4.5\n\n")
    assert len(read_table(path).truth) == 2
    path.write_text("text,label\n" + "x" * 140_000 + ",1.5\n")
    with pytest.raises(LimbeckError, match="expected a table of cells, but it cannot be read: field larger"):
        read_table(path)
