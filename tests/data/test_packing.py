"""Rows of text, padded or packed: the same texts, targets and loss."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from limbeck.core.batch import IGNORE
from limbeck.core.check import LimbeckError
from limbeck.core.stage import distill_step
from limbeck.core.terms import Clock, count
from limbeck.data.held import hold_out
from limbeck.data.packing import Row, pack, packed_batches, padding, repacked, row, row_batches
from limbeck.data.stream import Batches, lm_batches
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import weighted
from limbeck.sources.model import model_source


def texts(count: int = 60, longest: int = 24, seed: int = 0) -> list[Row]:
    """Texts of skewed lengths, the second half of each supervised."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(longest, 3 + rng.exponential(4, count).astype(int))
    return [row(rng.integers(1, 17, size), np.arange(size) >= size // 2) for size in sizes]


def test_a_row_never_has_its_first_token_as_a_target():
    assert row([5, 6], [True, True]).keep.tolist() == [False, True]


def test_best_fit_by_hand():
    assert pack([3, 8, 2, 7, 5], 10) == [[1, 2], [3, 0], [4]]
    assert pack([], 4) == []
    assert pack([4, 4], 4) == [[0], [1]]


@pytest.mark.parametrize("length", [24, 50, 333])
def test_every_text_is_in_one_row_and_rows_are_full(length):
    sizes = [one.size for one in texts(400)]
    rows = pack(sizes, length)
    assert sorted(index for one in rows for index in one) == list(range(400))
    filled = [sum(sizes[index] for index in one) for one in rows]
    assert max(filled) <= length
    assert len(rows) <= 11 / 9 * -(-sum(sizes) // length) + 1


def test_packed_batches_tell_texts_apart():
    rows = [row([1, 2, 3], [False, False, True]), row([4, 5], [False, True]), row([6, 7, 8, 9], [0, 1, 1, 1])]
    (batch,) = packed_batches(rows, 6, batch=2).take(1)
    found = sorted(zip(batch["ids"].tolist(), batch["segment"].tolist(), batch["targets"].tolist(), strict=True))
    assert found == [
        ([1, 2, 3, 0, 0, 0], [1, 1, 1, 0, 0, 0], [IGNORE, 3, IGNORE, IGNORE, IGNORE, IGNORE]),
        ([6, 7, 8, 9, 4, 5], [1, 1, 1, 1, 2, 2], [7, 8, 9, IGNORE, 5, IGNORE]),
    ]
    assert torch.equal(batch["mask"], batch["segment"] > 0)
    assert torch.equal(batch["answer"], batch["targets"] != IGNORE)


def test_padding_is_the_share_of_positions_without_a_token():
    rows = [row([1] * size, [True] * size) for size in (4, 2, 2, 4)]
    assert padding(Batches(rows, row_batches(rows, 2).collate, 2, shuffle=False)) == pytest.approx(4 / 16)
    assert padding(packed_batches(rows, 4, 2)) == 0
    skewed = texts(400)
    assert padding(row_batches(skewed, 8)) > 0.4
    assert padding(packed_batches(skewed, 64, 8)) < 0.02


MODELS = {
    "llama": lambda width: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=17, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
        )
    ),
    "gpt2": lambda width: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=17, n_embd=width, n_layer=2, n_head=2, n_positions=64, attn_pdrop=0.0, embd_pdrop=0.0,
            resid_pdrop=0.0,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("goal", [soft(), weighted(kl=(0.7, soft(temperature=2.0, rescale=True)), ce=(0.3, hard()))])
def test_packed_equals_padded_in_loss_and_gradients(kind, goal):
    rows, losses, gradients = texts(), [], []
    for stream in (row_batches(rows, 60), packed_batches(rows, 48, 60)):
        torch.manual_seed(0)
        student, teacher = MODELS[kind](16), MODELS[kind](32).eval()
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.mul_(3)
        batch = stream.at(0)
        if "segment" in batch:  # a batch of 60 packed rows begins the next epoch: each text once is all there is
            whole = stream.collate(list(stream.rows))
            assert whole["segment"].amax() > 3
            batch = whole
        step = distill_step(model_source(student), model_source(teacher), goal)
        loss = step(batch, Clock(0, 1)).total({"answer": count(batch, "answer")})
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad for name, p in student.named_parameters()})
    assert losses[0] > 0.01
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-6, rtol=1e-4)


def test_what_is_held_out_stays_padded_and_the_rest_is_packed():
    rows = texts(80)
    split = hold_out(row_batches(rows, 4))
    stream = repacked(split.stream, 24)
    held = sum(int(batch["mask"].sum()) for batch in split.batches)
    assert held == sum(one.size for one in rows[-4 * len(split.batches) :])
    assert sum(one.size for texts in stream.rows for one in texts) + held == sum(one.size for one in rows)
    assert not any("segment" in batch for batch in split.batches)


class Words:
    eos_token_id = 0

    def __call__(self, texts, **_):
        return {"input_ids": [[1] * len(text) for text in texts]}


def test_refusals():
    with pytest.raises(LimbeckError, match="a text of 9 tokens does not fit a packed row of 8"):
        packed_batches([row([1] * 9, [True] * 9)], 8, 1)
    with pytest.raises(LimbeckError, match="running text fills its rows"):
        repacked(lm_batches(["abcdef"], Words(), 3, 1), 3)
    with pytest.raises(LimbeckError, match="no rows"):
        packed_batches([], 8, 1)
