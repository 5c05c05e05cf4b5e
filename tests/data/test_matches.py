"""Pairs of texts: how they are read, told apart, and what of them is replaced."""

import json

import numpy as np
import pytest
import tiny_classifiers as classifiers

from limbeck.core.check import LimbeckError
from limbeck.data.matches import Match, match_batches, often, once, read_matches, renamed


def test_the_fields_that_a_row_may_have(tmp_path):
    rows = [{"query": "a", "match": "b"}, {"question": "c", "answer": "d"}, {"text": "e", "code": "f", "id": 1}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_matches(path) == [("a", "b"), ("c", "d"), ("e", "f")]
    path.write_text('{"query": "a", "match": "b"}\n{"question": "c"}')
    with pytest.raises(LimbeckError, match=r"pairs.jsonl:2: expected a pair of fields \(query and match.*has question"):
        read_matches(path)
    path.write_text('{"query": "a", "match": 3}')
    with pytest.raises(LimbeckError, match=r"pairs.jsonl:1: .*'match'"):
        read_matches(path)


def test_a_text_that_comes_twice_is_left_out():
    pairs = [Match("a", "x"), Match("a", "y"), Match("b", "y"), Match("c", "x"), Match("d", "z")]
    assert once(pairs) == [("a", "x"), ("d", "z")]


def test_names_that_are_said_again_are_replaced_everywhere():
    code = "def add(a, b2): return a + b2 + 12 + 12"
    assert often(code) == ["a", "b2"]
    assert renamed(code, ["z"], np.random.default_rng(0)) == "def add(z, z): return z + z + 12 + 12"
    assert renamed("def one(): return 1", ["z"], np.random.default_rng(0)) == "def one(): return 1"


def test_batches_hold_both_sides_and_replace_at_the_rate_asked_for():
    pairs = [Match(f"w{i % 9}", f"w{i % 20} w{i % 20} w3") for i in range(40)]
    tokenizer = classifiers.tokenizer()
    batch = next(iter(match_batches(pairs, tokenizer, 8, 40, shuffle=False)))
    assert batch["ids"].tolist() == [[2, 5 + i % 9, 3] for i in range(40)]
    assert batch["match_ids"][:, 1:4].tolist() == [[5 + i % 20, 5 + i % 20, 8] for i in range(40)]
    assert batch["match_mask"].all()
    stream = match_batches(pairs, tokenizer, 8, 40, rename=0.3, shuffle=False)
    seen = [one["match_ids"][:, 1] != batch["match_ids"][:, 1] for one in stream.take(30)]
    assert np.mean([changed.float().mean() for changed in seen]) == pytest.approx(0.3 * 19 / 20, abs=0.04)
    short = next(iter(match_batches(pairs, tokenizer, 4, 40, shuffle=False)))
    assert short["match_ids"].shape == (40, 4)
    with pytest.raises(LimbeckError, match=r"--rename 1\.5: expected a probability"):
        match_batches(pairs, tokenizer, 8, 4, rename=1.5)
