"""A token before everything: an LLM whose tokenizer adds one reads it before demonstrations, vectors and queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_llms
import torch
from tokenizers import processors
from torch import Tensor

from limbeck.context.answer import Answerer, alone, behind_text, behind_vectors
from limbeck.context.backbone import as_backbone
from limbeck.context.collate import Documents
from limbeck.context.distiller import Distiller, open_distiller
from limbeck.context.host import load_llm
from limbeck.context.reading import Reading, plan_reading
from limbeck.context.start import start_of
from limbeck.context.vectors import Vectors
from limbeck.core.check import LimbeckError
from limbeck.data.stream import lengths_mask, pad
from limbeck.data.tasks import Episode
from limbeck.data.templates import Example
from limbeck.methods.context import prompt_tuning
from limbeck.methods.context.mend import DISTILLER, LLM
from limbeck.models.load import load_tokenizer
from limbeck.sources.views import View, compressed_context, full_context, no_context

BOS = 1  # </s>, as in OPT
SETTINGS: dict[str, Any] = {"length": 3, "limit": 20, "budget": 40, "context": 60}
TASK = tiny_llms.task()
DEMOS, QUERY = TASK.train[:4], TASK.test[0]


def tokenizer(form: str = "</s> $0") -> Any:
    """The tests' tokenizer, which puts ``form`` around a text unless it is told not to."""
    found = tiny_llms.tokenizer()
    found._tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("</s>", BOS)])
    return found


def ids(text: str) -> list[int]:
    return tiny_llms.tokenizer()(text)["input_ids"]


@pytest.fixture(scope="module")
def lm() -> Any:
    return tiny_llms.build("llama").requires_grad_(False)


@pytest.fixture(scope="module")
def distiller(lm: Any) -> Distiller:
    return make(lm)


def make(lm: Any, kind: str = "llama", **settings: Any) -> Distiller:
    backbone = as_backbone(tiny_llms.build(kind, width=8, layers=1, seed=1), kind == "t5")
    return Distiller.build(lm, "nowhere", tokenizer(), backbone, **{**SETTINGS, **settings}).eval()


def text(examples: list[Example]) -> list[int]:
    return [token for example in examples for token in ids(f"{example.input} {example.output}")]


def said(lm: Any, before: list[int] | Tensor, after: list[int]) -> Tensor:
    """Log-probabilities of the model's own forward at the positions of ``after`` behind ids or embeddings."""
    table = lm.get_input_embeddings()
    first = before if isinstance(before, Tensor) else table(torch.tensor(before, dtype=torch.long))
    with torch.no_grad():
        logits = lm(inputs_embeds=torch.cat([first, table(torch.tensor(after))])[None]).logits[0, len(first) :]
    return logits.log_softmax(-1)


def test_the_tokenizer_says_what_stands_before_a_text() -> None:
    assert start_of(tokenizer()) == (BOS,)
    assert start_of(tokenizer("</s> </s> $0 </s>")) == (BOS, BOS)
    assert start_of(tokenizer("$0 </s>")) == ()
    assert start_of(tiny_llms.tokenizer()) == ()


def test_shipped_models_start_with_nothing() -> None:
    assert start_of(load_tokenizer(LLM)) == ()
    shipped = Distiller.from_pretrained(DISTILLER)
    assert shipped.reading.start == ()
    assert "start" not in shipped.state_dict()
    lm, tokenizer = load_llm(LLM)
    new = Distiller.build(lm, LLM, tokenizer, as_backbone(lm, False), length=16)
    assert new.reading.start == ()
    batch = shipped.collate()([Episode((Example("t", "Rom", "Roma"),), Example("t", "Oslo", "Oslo"))])
    assert batch["context"][0].tolist() == tokenizer("Rom\nRoma\n\n\n")["input_ids"]


def test_an_encoder_decoder_starts_with_nothing() -> None:
    t5 = tiny_llms.build("t5")
    assert make(t5, "t5").reading.start == ()
    with pytest.raises(LimbeckError, match="an encoder-decoder has a start of its own"):
        make(t5, "t5", start=(BOS,))


def test_option_scores_are_those_of_explicit_ids(lm: Any, distiller: Distiller) -> None:
    vectors, collate = distiller.distill(DEMOS), distiller.collate()
    with torch.no_grad():
        written = distiller._read(pad([[BOS, *text(DEMOS)]]), lengths_mask([[BOS, *text(DEMOS)]]))[0]
    before: list[tuple[Answerer, Any]] = [
        (alone(lm, tokenizer(), collate), [BOS]),
        (behind_text(lm, tokenizer(), collate, DEMOS), [BOS, *text(DEMOS)]),
        (behind_vectors(vectors, lm, tokenizer()), torch.cat([lm.get_input_embeddings().weight[[BOS]], written])),
    ]
    assert [answerer.positions for answerer, _ in before] == [1, 13, 4]
    for answerer, first in before:
        found = answerer.score(QUERY.input, QUERY.options)
        for option in QUERY.options:
            prompt, answer = ids(QUERY.input), ids(f" {option}")
            expected = said(lm, first, prompt + answer)[len(prompt) - 1, answer[0]]
            assert found[option] == pytest.approx(expected.item(), abs=1e-5)
        step = said(lm, first, ids(QUERY.input))[-1].argmax()
        assert answerer.write([QUERY.input], tokens=1) == [tokenizer().decode(step, skip_special_tokens=True).strip()]


@pytest.mark.parametrize("more", [0, 2])
def test_training_reads_what_answering_reads(lm: Any, distiller: Distiller, more: int) -> None:
    """With one query per row, and with three."""
    queries = TASK.test[: 1 + more]
    batch = distiller.collate()([Episode(tuple(DEMOS), queries[0], tuple(queries[1:]))])
    assert batch["context"][0].tolist() == batch["demos"][0].tolist() == [BOS, *text(DEMOS)]
    tensor = distiller.distill(DEMOS).tensor
    views: list[tuple[View, Any]] = [
        (full_context(lm), [BOS, *text(DEMOS)]),
        (compressed_context(lm, lambda b: distiller(b["demos"], b["demos_mask"])), tensor),
        (no_context(lm, distiller.reading.start), [BOS]),
    ]
    for view, first in views:
        expected = torch.cat([said(lm, first, text([query])) for query in queries])
        found = view(batch).logits_at()[0].log_softmax(-1)
        torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=1e-5)


def test_every_group_and_every_document_starts_alike(lm: Any) -> None:
    grouped = make(lm, groups=2)
    batch = grouped.collate()([Episode(tuple(DEMOS), QUERY)])
    assert batch["demos"][0].tolist() == [[BOS, *text(DEMOS[:2])], [BOS, *text(DEMOS[2:])]]
    vectors = grouped.distill(DEMOS)
    assert vectors.tensor.shape == (7, 16)  # one start before both groups' vectors
    assert (vectors.length, vectors.tokens) == (6, 12)
    documents = Documents(grouped.collate(), 96)
    assert documents.longest == 95
    found = documents([list(range(5, 15))])
    assert found["demos"][0].tolist() == [[BOS, 5, 6, 7, 8], [BOS, 9, 10, 11, 12]]
    assert found["context"][0].tolist() == [BOS, *range(5, 13)]
    assert found["ids"][0].tolist() == [13, 14]


def test_what_is_saved_comes_back(lm: Any, distiller: Distiller, tmp_path: Path) -> None:
    distiller.save_pretrained(tmp_path / "d")
    again = Distiller.from_pretrained(tmp_path / "d")
    assert again.reading == distiller.reading == Reading(3, start=(BOS,), limit=20, budget=40, context=60)
    assert start_of(again.tokenizer) == (BOS,)
    vectors = again.distill(DEMOS)
    assert torch.equal(vectors.tensor, distiller.distill(DEMOS).tensor)
    assert torch.equal(vectors.tensor[0], lm.get_input_embeddings().weight[BOS])
    assert repr(vectors).startswith("Vectors(3 x 16 behind a start for nowhere")
    vectors.save(tmp_path / "v.safetensors")
    loaded = Vectors.load(tmp_path / "v.safetensors")
    assert loaded.reading == vectors.reading
    found, expected = (
        behind_vectors(v, lm, tokenizer()).score("great film", ["good", "bad"]) for v in (loaded, vectors)
    )
    assert found == expected
    more = open_distiller(tmp_path / "d", lm, "elsewhere", tokenizer(), budget=30)
    assert more.reading == Reading(3, start=(BOS,), limit=20, budget=30, context=60)
    with pytest.raises(LimbeckError, match=r"start \(1, 1\): the distiller in .* learned with \(1,\)"):
        open_distiller(tmp_path / "d", lm, "elsewhere", tokenizer(), start=(1, 1))


def test_a_distiller_of_before_starts_with_nothing(lm: Any, tmp_path: Path) -> None:
    make(lm, start=()).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["reading"].pop("start") == []
    (tmp_path / "config.json").write_text(json.dumps(said))
    again = Distiller.from_pretrained(tmp_path)
    assert again.reading.start == ()
    assert again.distill(DEMOS).tensor.shape == (3, 16)


def test_peft_gives_the_same_logits(lm: Any, distiller: Distiller, tmp_path: Path) -> None:
    """PEFT puts the virtual tokens before all ids, so the start is one of them and the query has none."""
    peft = pytest.importorskip("peft")
    vectors = distiller.distill(DEMOS)
    queries = [row.input for row in TASK.test[:3]] + ["good"]
    batch = tokenizer()(queries, add_special_tokens=False, padding=True, return_tensors="pt")
    read, mask = batch["input_ids"], batch["attention_mask"].bool()
    vectors.to_peft(tmp_path)
    with torch.no_grad():
        ours = compressed_context(lm, lambda _: vectors.tensor[None])({"ids": read, "mask": mask}).logits_at(mask)
        adapted = peft.PeftModel.from_pretrained(tiny_llms.build("llama"), str(tmp_path)).eval()
        theirs = adapted(input_ids=read, attention_mask=mask.long()).logits[:, 4:][mask]
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    first = said(lm, vectors.tensor, ids(queries[0]))
    torch.testing.assert_close(theirs[: len(first)].log_softmax(-1), first, atol=1e-5, rtol=0)


def test_tuned_vectors_stand_behind_the_start(lm: Any, distiller: Distiller) -> None:
    cfg = prompt_tuning.Config(length=4, steps=3, batch=4, lr=0.1)
    tuned = prompt_tuning.prompt_tuning(lm, distiller.collate(), TASK.train, cfg)
    assert (tuned.length, tuned.tensor.shape) == (4, (5, 16))
    assert torch.equal(tuned.tensor[0], lm.get_input_embeddings().weight[BOS])
    first = prompt_tuning.FreeVectors(lm.get_input_embeddings().weight, 4).vectors
    assert (tuned.tensor[1:] - first).abs().amax(-1).gt(0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"length": 76, "budget": 10},
            "1 to start with, 76 vectors and a query of up to 20 tokens exceed the LLM",
        ),
        ({"context": 76}, "1 to start with, 76 tokens of demonstrations and a query of up to 20 exceed the LLM's 96"),
        ({"budget": 93}, "1 to start with, 93 tokens of demonstrations and 3 placeholders exceed the distiller's 96"),
    ],
)
def test_the_start_takes_room(lm: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        make(lm, **settings)
    make(lm, **settings, start=())


def test_lengths_leave_room_for_the_start() -> None:
    assert plan_reading(1024, 1024, start=(BOS,)) == Reading(start=(BOS,), context=766)
    assert plan_reading(None, None, start=(BOS,)) == Reading(start=(BOS,))
    small = plan_reading(96, 64, length=8, start=(BOS,))
    assert (small.limit, small.context, small.budget) == (24, 70, 55)
    full = make(tiny_llms.build("llama"), length=75, limit=20, budget=20)
    with torch.no_grad():
        full(torch.ones(1, 21, dtype=torch.long), torch.ones(1, 21))


def test_a_start_needs_its_embeddings(lm: Any, distiller: Distiller) -> None:
    with pytest.raises(LimbeckError, match="starts with 1 tokens, whose embeddings a distiller needs"):
        Distiller(distiller.backbone, distiller.host, distiller.reading)
