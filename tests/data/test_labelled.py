"""Rows with classes: reading, parting, batching, and making more of them."""

import json

import numpy as np
import pytest
import tiny_llms
import torch

from limbeck.atlas.topics import topics
from limbeck.core.batch import IGNORE
from limbeck.core.check import LimbeckError
from limbeck.data.augment import augmented, swap, there_and_back
from limbeck.data.labelled import Row, classes_in, labelled_batches, part, read_labelled

ROWS = [Row("good film great book", label="yes"), Row("bad film", label="no"), Row("a book")] * 4


def test_reading(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"premise": "a", "hypothesis": "b", "label": 1}, {"sentence": "c", "label": "x"}, {"text": "d"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_labelled(path) == [Row("a", "b", "1"), Row("c", None, "x"), Row("d", None, None)]
    (tmp_path / "b.tsv").write_text('a "film\t0\nc\td\t1\n')
    assert read_labelled(tmp_path / "b.tsv") == [Row('a "film', None, "0"), Row("c", "d", "1")]
    assert len(read_labelled(tmp_path)) == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"label": 1}', "bad.jsonl:1: the field 'text' is missing"), ('{"text": "a", "label": 1.5}', "'label' must be")],
)
def test_bad_rows_are_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(LimbeckError, match=message):
        read_labelled(path)


def test_classes_are_in_order():
    assert classes_in([Row("a", label=name) for name in ("10", "9", "b", "a")]) == ["9", "10", "a", "b"]
    with pytest.raises(LimbeckError, match="expected rows of two classes"):
        classes_in([Row("a", label="x"), Row("b")])


def test_no_row_both_trains_and_judges():
    rows = [Row(str(i), label=str(i % 2) if i % 3 else None) for i in range(60)]
    train, test = part(rows)
    assert len(test) == 8
    assert all(row.label is not None for row in test)
    assert sorted([*train, *test]) == sorted(rows, key=lambda row: row)


def test_batches_and_mixup():
    tokenizer = tiny_llms.tokenizer()
    batch = next(iter(labelled_batches(ROWS, ["no", "yes"], tokenizer, 8, 6, mixup=0.4)))
    assert batch["ids"].shape[0] == 12
    assert not batch["labelled"][6:].any()
    assert torch.equal(batch["labelled"][:6], batch["labels"][:6] != IGNORE)
    assert (batch["share"][:6] == 1).all()
    assert len(batch["share"][6:].unique()) == 1
    assert torch.equal(batch["other_ids"][6:].sort(0)[0], batch["ids"][6:].sort(0)[0])
    assert (batch["mask"][6:] >= batch["mask"][:6]).all()
    with pytest.raises(LimbeckError, match="label: expected one of no, yes, but got 'maybe'"):
        labelled_batches([Row("a", label="maybe")], ["no", "yes"], tokenizer, 8, 1)


def test_augmented_rows_are_new_and_have_no_class():
    made = augmented(ROWS, [swap(0.3)], copies=2, seed=0)
    assert made == augmented(ROWS, [swap(0.3)], copies=2, seed=0)
    assert {row.label for row in made} == {None}
    assert {tuple(sorted(row.text.split())) for row in made} <= {tuple(sorted(row.text.split())) for row in ROWS}
    assert not {row.text for row in made} & {"good film great book"}
    assert augmented(ROWS, [], 2) == []
    upper = there_and_back(lambda texts: [t.upper() for t in texts], lambda texts: ["" for _ in texts])
    assert upper(["a"], np.random.default_rng(0)) == ["a"]


def test_topics_are_the_same_whatever_is_asked_for():
    rows = topics("en", 40)
    assert rows == topics("en", 60)[:40]
    assert len({row["label"] for row in rows}) > 6
