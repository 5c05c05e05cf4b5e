"""``limbeck teach`` with a teacher behind an API: the store says what the model itself says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from serving import Serving
from tiny_served import Teacher, byte_level

from limbeck.core.check import LimbeckError
from limbeck.methods.language_models.taid import Config as Taid
from limbeck.methods.language_models.taid import main as taid
from limbeck.methods.language_models.teach import Config, batches, write_store
from limbeck.sources import patience
from limbeck.sources.stored import stored

LENGTH = 24


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A served teacher's student (its own weights, so that the two can be compared), and pairs to ask about."""
    monkeypatch.setattr(patience, "FIRST", 0.01)
    teacher = Teacher(byte_level(), "ids")
    teacher.model.save_pretrained(tmp_path / "student")
    teacher.tokenizer.save_pretrained(tmp_path / "student")
    words = "good film book plays five".split()
    rows = [{"prompt": f"a {a} {b}", "completion": f" {b} {a}"} for a in words for b in words]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def config(place: Path, url: str, **settings) -> Config:
    usual = {"tokenizer": str(place / "student"), "data": str(place / "pairs.jsonl"), "length": LENGTH, "top": 12}
    return Config(place / "store", teacher=url, **{**usual, **settings})


def test_a_store_of_what_a_server_says(place, capsys):
    teacher = Teacher(byte_level(), "ids")
    with Serving(teacher) as server:
        server.fail("500", "cut", "429")
        write_store(config(place, server.url, price=(1.0, 1.0)))
        paid = len(server.answered)
        write_store(config(place, server.url))
        assert (paid, len(server.answered)) == (25 + 1, paid), "the reply that was cut is asked for again, no other is"
    assert "tiny: 25 replies asked for, 0 from" in capsys.readouterr().out
    stream = batches(config(place, "http://x"), teacher.tokenizer, teacher.model.config)
    batch = stream.take(1)[0]
    said = stored(place / "store", teacher.tokenizer)(batch).logits_at(batch["answer"]).log_softmax(-1)
    with torch.no_grad():
        own = teacher.model(batch["ids"], attention_mask=batch["mask"].long()).logits[batch["answer"]].log_softmax(-1)
    best = own.topk(12)
    torch.testing.assert_close(said.gather(1, best.indices), best.values, atol=0.06, rtol=0)
    torch.testing.assert_close(said.exp().sum(1), torch.ones(len(said)), atol=1e-3, rtol=0)


def test_a_method_learns_from_it_without_the_server(place):
    with Serving(Teacher(byte_level(), "ids")) as server:
        write_store(config(place, server.url))
    settings = {"data": str(place / "pairs.jsonl"), "length": LENGTH, "steps": 3, "batch": 4}
    out = taid(Taid(place / "run", teacher=str(place / "store"), student=str(place / "student"), **settings))
    assert json.loads((out / "metrics.json").read_text())["steps"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": None}, "needs --tokenizer, the student's folder or Hub id"),
        ({"hidden": (1,)}, "a server gives no hidden states; leave --hidden out"),
        ({"tokenizer": "nowhere"}, "cannot load the configuration of 'nowhere'"),
        ({"teacher": "http://127.0.0.1:9"}, "the connection failed"),
    ],
)
def test_mistakes_are_said_in_one_sentence(place, changes, message):
    with pytest.raises(LimbeckError, match=message):
        write_store(config(place, changes.pop("teacher", "http://127.0.0.1:9"), **changes))
    assert not (place / "store").exists()


def test_a_method_asks_for_a_store_first(place):
    with pytest.raises(LimbeckError, match=r"keep its probabilities in a store first \(limbeck teach"):
        taid(Taid(place / "run", teacher="http://localhost:8000/v1", student=str(place / "student")))
