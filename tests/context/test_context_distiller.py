"""The distiller: padding never matters, groups are kept, what is saved comes back, and wrong models are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_llms
import torch

from limbeck.context.backbone import as_backbone
from limbeck.context.distiller import Distiller, is_distiller, open_distiller
from limbeck.context.host import Host
from limbeck.context.reading import Reading
from limbeck.core.check import LimbeckError
from limbeck.data.stream import lengths_mask, pad

KINDS = pytest.mark.parametrize("kind", tiny_llms.KINDS)
DEMOS = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16]]
SHAPE = {"length": 4, "budget": 40, "limit": 20, "context": 60}


def make(kind: str, width: int = 8, **settings: Any) -> Distiller:
    lm = tiny_llms.build(kind)
    backbone = as_backbone(tiny_llms.build(kind, width=width, layers=1, seed=1), kind == "t5")
    return Distiller.build(lm, "nowhere", tiny_llms.tokenizer(), backbone, **{**SHAPE, **settings}).eval()


@KINDS
@torch.no_grad()
def test_padding_changes_nothing(kind: str) -> None:
    distiller = make(kind)
    together = distiller(pad(DEMOS), lengths_mask(DEMOS))
    assert together.shape == (3, 4, 16)
    for row, demos in enumerate(DEMOS):
        alone = distiller(pad([demos]), lengths_mask([demos]))[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)
    wider = torch.nn.functional.pad(pad(DEMOS), (0, 9)), torch.nn.functional.pad(lengths_mask(DEMOS), (0, 9))
    torch.testing.assert_close(distiller(*wider), together, atol=1e-5, rtol=1e-5)


@KINDS
@torch.no_grad()
def test_placeholders_read_all_demonstrations(kind: str) -> None:
    distiller = make(kind)
    first = distiller(pad(DEMOS), lengths_mask(DEMOS))
    for place in (0, 5):
        other = [list(DEMOS[0])]
        other[0][place] = 40
        assert (distiller(pad(other), lengths_mask(other))[0] - first[0]).abs().max() > 1e-3


@KINDS
@torch.no_grad()
def test_equal_widths_have_no_projection_and_others_stay_within_one(kind: str) -> None:
    same, other = make(kind, width=16), make(kind)
    assert same.projection is None
    assert other.projection is not None
    assert other(pad(DEMOS), lengths_mask(DEMOS)).abs().max() < 1
    assert same(pad(DEMOS), lengths_mask(DEMOS)).abs().max() > 1


@torch.no_grad()
def test_groups_are_read_apart_and_all_kept() -> None:
    distiller = make("llama")
    rows = [[[5, 6, 7], [8]], [[9, 10], [11, 12, 13]]]
    ids = torch.stack([torch.nn.functional.pad(pad(row), (0, 3 - pad(row).shape[1])) for row in rows])
    vectors = distiller(ids, ids > 0)
    assert vectors.shape == (2, 8, 16)
    for row, groups in enumerate(rows):
        for number, group in enumerate(groups):
            alone = distiller(pad([group]), lengths_mask([group]))[0]
            torch.testing.assert_close(vectors[row, 4 * number : 4 * number + 4], alone, atol=1e-5, rtol=1e-5)


def test_placeholders_begin_as_embeddings_of_tokens_past_the_special_ones() -> None:
    big = as_backbone(tiny_llms.build("gpt2", width=8, vocabulary=300), False)
    distiller = Distiller(big, Host("x", 8), Reading(length=50))
    table = big.get_input_embeddings().weight
    found = [(table == row).all(1).nonzero()[0].item() for row in distiller.placeholders]
    assert min(found) >= 100
    assert len(set(found)) > 20
    again = Distiller(big, Host("x", 8), Reading(length=50))
    assert torch.equal(again.placeholders, distiller.placeholders)
    assert not torch.equal(Distiller(big, Host("x", 8), Reading(length=50), seed=1).placeholders, again.placeholders)


def test_placeholders_of_a_small_vocabulary_and_random_ones() -> None:
    small = as_backbone(tiny_llms.build("gpt2", width=8, vocabulary=30), False)
    table = small.get_input_embeddings().weight
    for row in Distiller(small, Host("x", 8), Reading(length=9)).placeholders:
        assert (table[15:] == row).all(1).any()
    random = Distiller(small, Host("x", 8), Reading(length=2000), init="random").placeholders
    assert abs(random.std().item() - small.config.initializer_range) < 1e-3
    with pytest.raises(LimbeckError, match="init: expected one of vocab, random"):
        Distiller(small, Host("x", 8), Reading(), init="zeros")


@KINDS
@pytest.mark.parametrize("width", [8, 16])
def test_what_is_saved_comes_back(kind: str, width: int, tmp_path: Path) -> None:
    distiller = make(kind, width=width)
    demos = tiny_llms.task().train[:5]
    for _ in range(2):  # saving again replaces
        distiller.save_pretrained(tmp_path / "saved")
    again = Distiller.from_pretrained(tmp_path / "saved")
    assert is_distiller(tmp_path / "saved")
    assert again.host == distiller.host
    assert again.reading == distiller.reading
    assert torch.equal(again.distill(demos).tensor, distiller.distill(demos).tensor)
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors", "tokenizer"]


def test_distilling_tells_what_it_replaced() -> None:
    distiller, demos = make("llama", budget=20), tiny_llms.task().train
    vectors = distiller.distill(demos[:3])
    assert vectors.tensor.shape == (4, 16)
    assert vectors.tensor.dtype == torch.float32
    assert (vectors.demonstrations, vectors.tokens) == (3, 9)
    cut = distiller.distill(demos)
    assert (cut.demonstrations, cut.tokens) == (7, 20)
    assert "in place of 7 demonstrations, 20 tokens" in repr(cut)


def test_distilling_leaves_the_mode_and_takes_no_gradient() -> None:
    distiller = make("gpt2").train()
    assert not distiller.distill(tiny_llms.task().train[:2]).tensor.requires_grad
    assert distiller.training


def test_what_cannot_be_distilled_is_refused() -> None:
    distiller = make("gpt2")
    with pytest.raises(LimbeckError, match="the list of demonstrations is empty"):
        distiller.distill([])
    with pytest.raises(LimbeckError, match="take 100 positions, but the distiller has 96"):
        distiller(torch.ones(1, 96, dtype=torch.long), torch.ones(1, 96))
    with torch.no_grad():
        distiller.placeholders[0, 0] = float("nan")
    with pytest.raises(LimbeckError, match="NaN or infinity"):
        distiller.distill(tiny_llms.task().train[:2])
    distiller.tokenizer = None
    with pytest.raises(LimbeckError, match="no tokenizer"):
        distiller.distill(tiny_llms.task().train[:2])


def test_models_that_do_not_fit_each_other_are_refused() -> None:
    lm, tokenizer = tiny_llms.build("llama"), tiny_llms.tokenizer()
    with pytest.raises(LimbeckError, match="backbone is an encoder-decoder and the LLM a decoder"):
        as_backbone(tiny_llms.build("t5"), seq2seq=False)
    other = tiny_llms.tokenizer([*tiny_llms.WORDS, "extra"])
    with pytest.raises(LimbeckError, match=r"theirs have \d+ and \d+ tokens of which \d+ differ"):
        Distiller.build(lm, "x", tokenizer, as_backbone(lm, False), other, **SHAPE)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": 93}, "93 tokens of demonstrations and 4 placeholders exceed the distiller's 96 positions"),
        ({"length": 80, "budget": 10}, "80 vectors and a query of up to 20 tokens exceed the LLM's 96 positions"),
        ({"context": 80}, "80 tokens of demonstrations and a query of up to 20 exceed the LLM's 96 positions"),
        ({"limit": 3}, "a query needs at least 4 tokens of room"),
        ({"length": 0}, "length and groups must be at least 1"),
        ({"layout": "mned"}, "did you mean 'mend'"),
        ({"enter": "states", "query": "encoder"}, "vectors as encoder states need the query on the decoder"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(LimbeckError, match=said):
        make("gpt2", **settings)


def test_folders_that_hold_no_distiller_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=r"it has no config\.json"):
        Distiller.from_pretrained(tmp_path)
    folder = tiny_llms.save("gpt2", tmp_path / "gpt2")
    assert not is_distiller(folder)
    with pytest.raises(LimbeckError, match="expected a distiller's configuration"):
        Distiller.from_pretrained(folder)


def test_broken_files_are_named(tmp_path: Path) -> None:
    make("gpt2").save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, said = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(whole[:-100])
    with pytest.raises(LimbeckError, match="not a whole safetensors file"):
        Distiller.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    config.write_text(json.dumps({**said, "reading": {**said["reading"], "length": 5}}))
    with pytest.raises(LimbeckError, match=r"do not fit the configuration \(placeholders\)"):
        Distiller.from_pretrained(tmp_path)
    config.write_text(json.dumps({**said, "reading": {**said["reading"], "size": 5}}))
    with pytest.raises(LimbeckError, match="unknown settings size"):
        Distiller.from_pretrained(tmp_path)
    config.write_text(json.dumps({**said, "backbone": {"model_type": "no-such-model"}}))
    with pytest.raises(LimbeckError, match="the backbone cannot be built"):
        Distiller.from_pretrained(tmp_path)


def test_going_on_from_a_distiller_keeps_how_it_reads(tmp_path: Path) -> None:
    distiller, lm, tokenizer = make("gpt2", layout="metaicl"), tiny_llms.build("gpt2"), tiny_llms.tokenizer()
    distiller.save_pretrained(tmp_path)
    again = open_distiller(tmp_path, lm, "elsewhere", tokenizer, length=None, layout=None, budget=30, groups=1)
    assert again.reading == Reading(length=4, layout="metaicl", limit=20, budget=30, context=60)
    assert again.host.llm == "elsewhere"
    assert torch.equal(again.placeholders, distiller.placeholders)
    with pytest.raises(LimbeckError, match=r"length 5: the distiller in .* learned with 4"):
        open_distiller(tmp_path, lm, "elsewhere", tokenizer, length=5)
    with pytest.raises(LimbeckError, match=r"groups 2: the distiller in .* learned with 1"):
        open_distiller(tmp_path, lm, "elsewhere", tokenizer, groups=2)
    with pytest.raises(LimbeckError, match="made for an LLM with model_type gpt2, but this one has llama"):
        open_distiller(tmp_path, tiny_llms.build("llama"), "elsewhere", tokenizer)
    with pytest.raises(LimbeckError, match="other weights"):
        open_distiller(tmp_path, tiny_llms.build("gpt2", seed=5), "elsewhere", tokenizer)


def test_a_model_becomes_a_new_distiller(tmp_path: Path) -> None:
    folder = tiny_llms.save("gpt2", tmp_path / "small", width=8)
    lm = tiny_llms.build("gpt2")
    distiller = open_distiller(folder, lm, "llm", tiny_llms.tokenizer(), length=3)
    assert distiller.reading == Reading(length=3, limit=24, budget=93, context=71)
    expected = tiny_llms.build("gpt2", width=8).transformer.state_dict()
    assert all(torch.equal(distiller.backbone.state_dict()[name], value) for name, value in expected.items())
    with pytest.raises(LimbeckError, match="cannot load"):
        open_distiller(tmp_path / "nothing", lm, "llm", tiny_llms.tokenizer())
