from pathlib import Path

import pytest
import torch

from limbeck.atlas.corpora import documents
from limbeck.atlas.train_encoder import HELD_OUT, LENGTH, measure
from limbeck.core.save import read_json
from limbeck.data.stream import mlm_batches
from limbeck.models.load import load_model, place


def folder(which):
    return Path(place(f"limbeck:atlas/weights/encoder-{which}"))


@pytest.fixture(scope="module")
def both():
    return {which: load_model(folder(which), "masked") for which in ("a", "b")}


def test_they_share_a_tokenizer_and_differ_in_weights(both):
    (a, one), (b, two) = both["a"], both["b"]
    assert one.get_vocab() == two.get_vocab()
    assert len(one("România: leu românesc. " * 40)["input_ids"]) > 128
    ids = torch.tensor([one("România: leu românesc.")["input_ids"]])
    assert (a(ids).logits - b(ids).logits).abs().max() > 0.1
    assert a.dtype == b.dtype == torch.float32
    assert not a.training


@pytest.mark.parametrize("which", ["a", "b"])
def test_the_measured_quality_holds_on_held_out_text(which, both):
    model, tokenizer = both[which]
    batches = mlm_batches(documents("ro", 60, HELD_OUT), tokenizer, LENGTH, 30).take(2)
    found = measure(model, batches, 0, torch.tensor(tokenizer.convert_tokens_to_ids(list("0123456789"))))
    told = read_json(folder(which) / "quality.json")["held-out masked accuracy"]["ro"]
    assert found["no digits"] == pytest.approx(told["no digits"], abs=0.08)
    assert told["no digits"] > told["most frequent token"] + 0.3


def test_they_fill_a_gap_with_what_they_know(both):
    for model, tokenizer in both.values():
        ids = torch.tensor([tokenizer("România: luni (10:15) [MASK] joi (12:40).")["input_ids"]])
        gap = ids[0] == tokenizer.mask_token_id
        assert tokenizer.decode(model(ids).logits[0, gap].argmax(-1)) == "și"


def test_they_are_small():
    sizes = [file.stat().st_size for which in ("a", "b") for file in folder(which).iterdir()]
    assert sum(sizes) < 5e6
    assert max(sizes) < 2e6
