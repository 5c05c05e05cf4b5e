"""Semantic revision: the three losses of one batch against their parts, and the levels that are learned."""

import pytest
import torch
from tiny_llms import build, tokenizer

from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.data.samples import Sample, batch_of
from limbeck.data.spans import Neighbours
from limbeck.losses.divergence import cross_entropy, forward_kl
from limbeck.methods.language_models.semantic_revision import (
    Config,
    Levels,
    chunked,
    semantic,
    semantic_revision,
)
from limbeck.sources.model import model_source

ROWS = [Sample([4 + i, 5 + i], [6, 7 + i, 8, 1]) for i in range(8)]


def batch() -> dict:
    made = Neighbours(tokenizer(), lambda text: [(0, len(text))])(batch_of(ROWS[:4]))
    return made | {"reference": made["answer"] & torch.tensor([[True], [False], [True], [False]])}


def both(seed: int = 0, v: int = 64) -> list[Signals]:
    shape = batch()["ids"].shape
    generator = torch.Generator().manual_seed(seed)
    return [Signals(logits=2 * torch.randn(*shape, v, generator=generator)) for _ in range(2)]


def test_without_clipping_the_losses_are_their_formulas():
    (student, teacher), made = both(), batch()
    terms = semantic(None, Config(span=2.0, hard=3.0))(student, teacher, made, Clock(0, 1))
    where, reference = made["answer"], made["reference"]
    kl = forward_kl(student.logits, teacher.logits)[where].sum()
    assert terms["dac"].sum.item() == pytest.approx(kl.item(), rel=1e-5)
    nll = cross_entropy(student.logits, made["targets"])[reference].sum()
    assert terms["hard"].sum.item() == pytest.approx(nll.item(), rel=1e-5)
    q, p = (signals.logits.softmax(-1) for signals in (student, teacher))
    apart, pairs = 0.0, 0
    for row in range(4):  # three tokens of text, in one phrase: two pairs; the end of the text is in none
        for place in (1, 2):
            gap = q[row, place] * q[row, place + 1] - p[row, place] * p[row, place + 1]
            apart, pairs = apart + gap.pow(2).sum().item(), pairs + 1
    assert int(made["pairs"].sum()) == pairs == 8
    assert terms["span"].sum.item() == pytest.approx(apart, rel=1e-5)
    assert [terms[name].weight for name in ("dac", "span", "hard")] == [1.0, 2.0, 3.0]
    assert set(semantic(None, Config(span=0, hard=0))(student, teacher, made, Clock(0, 1))) == {"dac"}


def test_levels_start_near_plain_kl_and_are_ordered():
    torch.manual_seed(0)
    levels, (student, teacher) = Levels(64), both()
    low, high = levels(student.logits[0], teacher.logits[0])
    assert (low < 0.03).all()
    assert (high > 0.97).all()
    torch.nn.init.normal_(levels.net[-1].weight, std=5.0)
    low, high = levels(student.logits[0], teacher.logits[0])
    assert (low <= high).all()
    assert (low >= 0).all()
    assert (high <= 1).all()


def test_levels_learn_but_nothing_goes_back_through_what_they_read():
    torch.manual_seed(0)
    levels, (student, teacher) = Levels(64), both()
    ours = student.logits[0].requires_grad_()
    low, high = levels(ours, teacher.logits[0])
    (low + high).sum().backward()
    assert ours.grad is None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in levels.net[-1].parameters())


def test_learned_levels_lower_the_loss_and_keep_the_least_mass():
    """Nothing but the guard keeps levels that minimise the loss from keeping little; with it, half stays."""
    torch.manual_seed(0)
    levels, (student, teacher), made = Levels(64), both(), batch()
    optimizer, goal, seen = torch.optim.Adam(levels.parameters(), 0.05), semantic(levels, Config(least=0.5)), []
    for _ in range(40):
        terms = goal(student, teacher, made, Clock(0, 1))
        optimizer.zero_grad()
        terms["dac"].sum.backward()
        optimizer.step()
        seen.append((terms["dac"].sum.item(), terms["kept_mass"].sum.item() / int(made["answer"].sum())))
    assert terms["kept_mass"].weight == 0
    assert seen[-1][0] < 0.9 * seen[0][0]
    assert 0.5 <= seen[-1][1] < seen[0][1]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_chunks_change_neither_values_nor_gradients(size):
    values = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    where = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    squares, cubes = chunked(lambda mask: (values[mask] ** 2, values[mask] ** 3), where, size)
    torch.testing.assert_close(squares, (values[where] ** 2).sum())
    torch.testing.assert_close(cubes, (values[where] ** 3).sum())
    (gradient,) = torch.autograd.grad(squares, values)
    torch.testing.assert_close(gradient, 2 * values.detach() * where[..., None])


def test_the_recipe_trains_student_and_levels_and_writes():
    student, teacher = build("gpt2", width=8, layers=1), build("gpt2", seed=3)
    stream = [batch_of(ROWS[:4]), batch_of(ROWS[4:])]
    cfg = Config(steps=4, sft_steps=0, new_tokens=4, lr=1e-2, share=0.5, corrections=2)
    before = [p.clone() for p in student.parameters()]
    said = semantic_revision(student, teacher, stream, tokenizer(), cfg)
    assert 0 < said["share_written"] < 1
    assert not any(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    source = model_source(student)(stream[0])
    assert torch.isfinite(source.logits_at(stream[0]["answer"])).all()
