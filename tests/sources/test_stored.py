"""A stored teacher says what the live one says, whatever the order, padding and packing of the texts; or refuses."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from toy_teacher import SIZE, ToyTeacher, collate, packed, rows, stream, tokenizer

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.data.store.folder import open_store
from limbeck.data.store.teach import Keep, teach
from limbeck.losses.divergence import (
    forward_kl,
    jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    soft_cross_entropy,
    total_variation,
)
from limbeck.objectives.tokens import soft
from limbeck.sources.ensemble import mean_source
from limbeck.sources.stored import stored

CLOCK = Clock(0, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "store"
    teach(ToyTeacher(), stream(), tokenizer(), out, Keep(top=32), {"data": "toy", "length": 24})
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A store that keeps every token, so that only quantisation stands between it and the teacher."""
    out = tmp_path_factory.mktemp("stores") / "whole"
    teach(ToyTeacher(), stream(), tokenizer(), out, Keep(top=SIZE), {"data": "toy"})
    return out


def gap(said: Signals, batch: Batch) -> float:
    """Mean KL of the live teacher to what was stored."""
    live = ToyTeacher()(batch).logits_at(batch["answer"])
    return float(forward_kl(said.logits_at(batch["answer"]), live).mean())


def test_a_store_tells_the_teacher_within_the_wanted_divergence(store):
    batch = collate(rows())
    said = stored(store, tokenizer())(batch)
    assert 0 < gap(said, batch) < 0.04
    there = said.logits_at(batch["answer"])
    torch.testing.assert_close(there.logsumexp(-1), torch.zeros(len(there)), atol=2e-3, rtol=0)


def test_the_best_tokens_are_within_four_hundredths_of_a_nat(store):
    batch = collate(rows())
    live = ToyTeacher()(batch).logits_at(batch["answer"]).log_softmax(-1)
    best = live.topk(32, -1)
    told = stored(store)(batch).logits_at(batch["answer"]).gather(1, best.indices)
    assert (told - best.values).abs().max() <= 0.04


def test_order_and_padding_and_company_do_not_matter(store):
    """Shuffled, one by one, in other batches, padded to the left and three times over: the same numbers."""
    source, texts = stored(store), rows()
    known = {}
    for text in texts:
        batch = collate([text])
        known[tuple(text[0])] = source(batch).logits_at(batch["answer"])
    for batch_size, seed in ((3, 1), (7, 2), (40, 3)):
        shuffled = stream(batch=batch_size, shuffle=True)
        shuffled.seed = seed
        for batch in shuffled.take(-(-3 * 40 // batch_size)):
            said = source(batch).logits_at(batch["answer"])
            texts_here = [tuple(row[mask].tolist()) for row, mask in zip(batch["ids"], batch["mask"], strict=True)]
            torch.testing.assert_close(said, torch.cat([known[text] for text in texts_here]), rtol=0, atol=1e-5)
    batch = collate(texts[:5])
    flipped = {name: torch.roll(value, 4, 1) for name, value in batch.items()}
    left = {name: torch.cat([flipped[name][:, 4:] * 0, batch[name]], 1) for name in batch}
    assert torch.equal(source(left).logits_at(left["answer"]), source(batch).logits_at(batch["answer"]))


def test_packed_texts_are_found_one_by_one(store):
    texts = rows()[:6]
    batch, apart = packed(texts), collate(texts)
    source = stored(store)
    assert torch.equal(source(batch).logits_at(batch["answer"]), source(apart).logits_at(apart["answer"]))


def test_taught_packed_and_asked_apart(tmp_path):
    from limbeck.data.stream import Batches

    texts = rows(12)
    data = Batches([texts[:6], texts[6:]], lambda bins: packed(bins[0]), 1, shuffle=False)
    teach(ToyTeacher(), data, tokenizer(), tmp_path / "store", Keep(top=32))
    batch = collate(texts)
    assert gap(stored(tmp_path / "store")(batch), batch) < 0.05


DIVERGENCES = [
    forward_kl,
    reverse_kl,
    jsd,
    total_variation,
    soft_cross_entropy,
    partial(skew_forward_kl, alpha=0.1),
    partial(skew_reverse_kl, alpha=0.1),
]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: getattr(d, "__name__", "skew"))
def test_objectives_have_the_values_of_the_live_teacher(whole, store, divergence, temperature):
    """For any student within a hundredth of a nat if all is kept; for one on its way, within the wanted 0.04 if not.

    A temperature makes more of the rest, and so of what is not known of it.
    """
    batch = collate(rows())
    teacher, count = ToyTeacher()(batch), {"answer": int(batch["answer"].sum())}
    noise = torch.randn(*batch["ids"].shape, SIZE, generator=torch.Generator().manual_seed(1))
    goal = soft(divergence, temperature)
    near = teacher.logits + 0.5 * noise, stored(store), 0.04 if temperature == 1 else 0.2
    for logits, source, within in ((noise, stored(whole), 0.01), near):
        live, told = (goal(Signals(logits=logits), said, batch, CLOCK) for said in (teacher, source(batch)))
        assert abs(float(told.total(count) - live.total(count))) < within


def test_gradients_are_those_of_the_live_teacher(whole):
    batch = collate(rows())
    found = []
    for teacher in (ToyTeacher(), stored(whole)):
        logits = torch.zeros(*batch["ids"].shape, SIZE, requires_grad=True)
        soft()(Signals(logits=logits), teacher(batch), batch, CLOCK).total({"answer": 1}).backward()
        found.append(logits.grad)
    torch.testing.assert_close(found[1], found[0], atol=2e-2, rtol=0)


def test_stored_teachers_mix_with_others(store):
    batch = collate(rows()[:4])
    mixed = mean_source([stored(store), ToyTeacher(seed=3)])(batch).logits_at(batch["answer"])
    assert torch.isfinite(mixed).all()


def test_some_positions_at_a_time_are_the_same(store):
    """Losses that hold only some of the logits ask again and again."""
    batch = collate(rows())
    lazy = stored(store)(batch).readout
    number = batch["answer"].flatten().cumsum(0).reshape(batch["answer"].shape)
    parts = [lazy.at(batch["answer"] & (number % 3 == i)) for i in range(3)]
    everything = lazy.at(batch["answer"])
    for i, part in enumerate(parts):
        assert torch.equal(part, everything[(torch.arange(1, len(everything) + 1) % 3) == i])
    assert lazy.by_chunk


def test_mixed_precision_does_not_touch_what_was_stored(store):
    batch = collate(rows())
    plain = stored(store)(batch).logits_at(batch["answer"])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = stored(store)(batch).logits_at(batch["answer"])
    assert torch.equal(plain, mixed)


def test_hidden_states_come_back(tmp_path):
    teach(ToyTeacher(), stream(), tokenizer(), tmp_path / "store", Keep(hidden=(1, 2), on="mask"))
    batch = collate(rows()[:7])
    live, told = ToyTeacher()(batch), stored(tmp_path / "store")(batch)
    assert told.present() == ["hidden"]
    for layer in (1, 2):
        there = live.hidden[layer][batch["mask"]]
        scale = there.abs().amax(-1, keepdim=True)
        torch.testing.assert_close(told.hidden[layer][batch["mask"]] / scale, there / scale, atol=5e-4, rtol=0)
        assert told.hidden[layer][~batch["mask"]].abs().max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b["ids"].__setitem__((0, 0), 7), "the teacher was never asked about a text of .* tokens"),
        (lambda b: b["mask"].__setitem__((0, 0), False), "was never asked about a text"),
        (lambda b: b["answer"].__setitem__((0, 0), True), "asked about token 1 of a text .* which was not supervised"),
    ],
)
def test_a_text_that_was_never_taught_is_refused(store, change, message):
    texts = [(ids, 3) if len(ids) > 4 else (ids, begin) for ids, begin in rows() if begin > 2][:3]
    batch = collate([(ids, begin) for ids, begin in rows() if begin > 2][:3])
    assert len(texts) == 3
    change(batch)
    with pytest.raises(LimbeckError, match=message) as caught:
        stored(store)(batch)
    assert "data toy, length 24" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_tokenizer_is_refused(store):
    with pytest.raises(LimbeckError, match="was taught with another tokenizer"):
        stored(store, tokenizer(SIZE + 1))
    mixed = tokenizer()
    assert stored(store, mixed).store.card["top"] == 32


def test_positions_that_were_not_asked_about_are_refused(store):
    batch = collate(rows()[:3])
    said = stored(store)(batch)
    with pytest.raises(LimbeckError, match="speaks only where it was asked"):
        said.logits_at()
    with pytest.raises(LimbeckError, match="a store is asked at 'answer', but the batch holds only"):
        stored(store)({"ids": batch["ids"], "mask": batch["mask"]})


def test_a_batch_without_supervised_tokens_is_empty_and_finite(store):
    batch = collate(rows()[:3])
    batch["answer"] &= False
    said = stored(store)(batch)
    assert said.logits_at(batch["answer"]).shape == (0, SIZE)


def test_the_same_text_asked_in_two_ways_is_found_in_both(tmp_path):
    from limbeck.data.stream import Batches

    ids = list(range(2, 14))
    data = Batches([(ids, 8), (ids, 2), (ids, 8)], collate, 1, shuffle=False)
    teach(ToyTeacher(), data, tokenizer(), tmp_path / "store", Keep(top=32))
    assert sum(map(len, open_store(tmp_path / "store").shards)) == 2
    for begin in (8, 2, 5):
        batch = collate([(ids, begin)])
        assert gap(stored(tmp_path / "store")(batch), batch) < 0.05


def test_forbidden_tokens_stay_all_but_impossible(tmp_path):
    def strict(batch):
        logits = ToyTeacher()(batch).logits.clone()
        logits[..., 100:] = -math.inf
        return Signals(logits=logits)

    teach(strict, stream(), tokenizer(), tmp_path / "store", Keep(top=64))
    batch = collate(rows())
    told = stored(tmp_path / "store")(batch).logits_at(batch["answer"])
    assert told[:, 100:].exp().sum(1).max() < 2e-3
    assert torch.isfinite(told[:, :100]).all()
