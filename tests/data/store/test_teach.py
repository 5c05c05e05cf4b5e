"""Stores are written whole: after kills, by several processes, and refused where they are not what was written."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_teacher import SIZE, ToyTeacher, collate, rows, stream, tokenizer

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.data.store import teach as teaching
from limbeck.data.store.folder import open_store
from limbeck.data.store.teach import Keep, teach
from limbeck.data.stream import Batches


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """What ``teach_child`` leaves behind, and how often it was killed."""
    out = tmp_path_factory.mktemp("stores")
    child = [sys.executable, str(Path(__file__).with_name("teach_child.py")), str(out)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(child, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


@pytest.fixture
def store(stores, tmp_path):
    """A copy of the undisturbed store, to be spoiled."""
    return Path(shutil.copytree(stores[0] / "straight", tmp_path / "store"))


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("other", ["killed", "pair"])
def test_killed_or_by_two_processes_the_store_is_the_same_to_the_last_bit(stores, other):
    out, kills = stores
    straight = content(out / "straight")
    assert straight == content(out / other)
    assert len([name for name in straight if name.startswith("shards/")]) >= 4
    assert kills >= 4


def test_sizes_are_told_and_a_second_run_changes_nothing(store, monkeypatch):
    monkeypatch.setattr(teaching, "SHARD_TOKENS", 60)
    before, teacher = content(store), ToyTeacher()
    done = teach(teacher, stream(), tokenizer(), store, Keep(top=8), {"data": "toy"})
    assert content(store) == before
    assert teacher.asked == 0
    assert done["rows"] == 40
    assert done["tokens"] == sum(len(ids) - begin for ids, begin in rows())
    assert done["bytes"] == sum(len(data) for name, data in before.items() if name.startswith("shards/"))


def damaged(store, how):
    """Spoil a file of the store and return it."""
    path = store / "shards" / "00002.safetensors"
    raw = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(raw[:-7])
    elif how == "cut to the header":
        path.write_bytes(raw[:40])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "gone":
        path.unlink()
    elif how == "book":
        path = store / "book.safetensors"
        raw = bytearray(path.read_bytes())
        raw[-5] ^= 16
        path.write_bytes(raw)
    elif how == "card":
        path = store / "store.json"
        path.write_text(path.read_text().replace('"top": 8', '"top": 9'))
    else:
        raw[how] ^= 16
        path.write_bytes(raw)
    return path


WAYS = ["cut", "cut to the header", "empty", "gone", "book", "card", 3, 30, 200]


@pytest.mark.parametrize("how", WAYS)
def test_a_file_that_is_cut_or_changed_is_refused_by_name(store, how):
    path = damaged(store, how)

    def read():
        whole = open_store(store)
        assert whole.book.size == SIZE
        whole.check()

    with pytest.raises(LimbeckError, match=f"{path.name}: .*limbeck teach") as caught:
        read()
    assert "\n" not in str(caught.value)


def test_any_flipped_bit_is_found(store):
    path = store / "shards" / "00001.safetensors"
    raw = path.read_bytes()
    draw = np.random.default_rng(0)
    for at in draw.choice(len(raw), 60, replace=False):
        spoiled = bytearray(raw)
        spoiled[at] ^= 1 << draw.integers(8)
        path.write_bytes(spoiled)
        with pytest.raises(LimbeckError, match="00001"):
            open_store(store).check()


def test_the_same_command_mends_a_damaged_store(store, monkeypatch):
    monkeypatch.setattr(teaching, "SHARD_TOKENS", 60)
    before = content(store)
    for how in ("cut", "book", 400):
        damaged(store, how)
        teach(ToyTeacher(), stream(), tokenizer(), store, Keep(top=8), {"data": "toy"})
        assert content(store) == before


def test_what_a_killed_process_left_lying_is_cleared(store, monkeypatch):
    monkeypatch.setattr(teaching, "SHARD_TOKENS", 60)
    before = content(store)
    (store / "shards" / ".00001.safetensors.7.part").write_bytes(b"half")
    (store / ".teacher-x").mkdir()
    teach(ToyTeacher(), stream(), tokenizer(), store, Keep(top=8), {"data": "toy"})
    assert content(store) == before
    assert not (store / ".teacher-x").exists()


def test_an_unfinished_store_is_not_read(store):
    (store / "done.json").unlink()
    with pytest.raises(LimbeckError, match="not finished; run the same limbeck teach again, it goes on"):
        open_store(store)
    with pytest.raises(LimbeckError, match="is no store"):
        open_store(store / "shards")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": Keep(top=9)}, "top was 8 and is now 9"),
        ({"about": {"data": "other"}}, "about was .*toy.* and is now .*other"),
        ({"tokenizer": tokenizer(SIZE + 1)}, "tokenizer was"),
        ({"stream": stream(41)}, "rows was 40 and is now 41"),
        ({"stream": stream(seed=1)}, "00000.safetensors: was written about other rows than the data hold now"),
    ],
)
def test_another_teaching_in_the_same_folder_is_refused(store, monkeypatch, changes, message):
    monkeypatch.setattr(teaching, "SHARD_TOKENS", 60)
    monkeypatch.setattr(teaching, "_per_shard", lambda *_: json.loads((store / "store.json").read_text())["per_shard"])
    before = content(store)
    settings = {"stream": stream(), "tokenizer": tokenizer(), "keep": Keep(top=8), "about": {"data": "toy"}} | changes
    with pytest.raises(LimbeckError, match=message):
        teach(ToyTeacher(), out=store, **settings)
    assert content(store) == before


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(LimbeckError, match=r"holds model.safetensors, not a store; choose another --out"):
        teach(ToyTeacher(), stream(), tokenizer(), tmp_path)
    assert content(tmp_path) == {"model.safetensors": b"mine"}


def broken(value):
    def speak(batch):
        said = ToyTeacher()(batch)
        logits = said.logits.clone()
        logits[1, 2, 3] = value
        return replace(said, logits=logits, hidden={1: logits})

    return speak


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_teacher_writes_nothing_that_could_be_read(tmp_path, value):
    texts = [(ids, 1) for ids, _ in rows() if len(ids) > 6]
    data = Batches(texts, collate, 8, shuffle=False)
    for keep, message in ((Keep(8), "logits hold NaN or infinity"), (Keep(hidden=(1,)), "hidden states hold NaN")):
        out = tmp_path / str(len(keep.hidden))
        with pytest.raises(LimbeckError, match=message):
            teach(broken(value), data, tokenizer(), out, keep)
        with pytest.raises(LimbeckError, match="not finished"):
            open_store(out)


def test_what_cannot_be_taught_is_refused(tmp_path):
    def masked(rows, rng):
        return collate(rows)

    with pytest.raises(LimbeckError, match="masked anew each time"):
        teach(ToyTeacher(), Batches(rows(), masked, 4, draws=True), tokenizer(), tmp_path / "a")
    unsupervised = Batches([(ids, len(ids)) for ids, _ in rows()], collate, 4)
    with pytest.raises(LimbeckError, match="supervise no token"):
        teach(ToyTeacher(), unsupervised, tokenizer(), tmp_path / "b")
    with pytest.raises(LimbeckError, match="--top 0: a store keeps 1 to 4096"):
        Keep(top=0)
    with pytest.raises(LimbeckError, match="--within 0"):
        Keep(within=0)


def test_a_vocabulary_smaller_than_top_is_kept_whole(tmp_path):
    teacher = ToyTeacher()
    done = teach(teacher, stream(8), tokenizer(), tmp_path / "store", Keep(top=1000))
    store = open_store(tmp_path / "store")
    assert store.book.tilts == 0
    assert done["tokens"] > 0
    assert isinstance(teacher(collate(rows(2))), Signals)
    assert torch.is_tensor(teacher(collate(rows(2))).logits)
