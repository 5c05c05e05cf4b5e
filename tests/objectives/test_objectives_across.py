"""Objectives across tokenizers: exact where they are one, the chain rule, events as sums of probabilities."""

from itertools import pairwise

import pytest
import torch
from cutters import TEXTS, cutter

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Readout, Signals
from limbeck.core.terms import Clock, count
from limbeck.data.crossed import collate, text_rows
from limbeck.data.spelling import shared_events
from limbeck.losses.across import squared_gap
from limbeck.losses.across import uld as sorted_distance
from limbeck.losses.divergence import cross_entropy, forward_kl, jsd, reverse_kl
from limbeck.objectives.across import Lumps, in_pieces, shared, spans, uld
from limbeck.objectives.tokens import soft
from limbeck.objectives.weighted import weighted
from limbeck.sources.vocabulary import elsewhere

CLOCK = Clock(0, 10)
WIDTH = 6


def speaker(size, seed, late=True):
    """A source of random states that are the same for the same ids, and the weight of its output layer."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(size, WIDTH, generator=generator)
    weight = torch.randn(size, WIDTH, generator=generator).requires_grad_()

    def says(batch):
        states = table[batch["ids"]].cumsum(1).tanh()
        return Signals(readout=Readout(states, weight)) if late else Signals(logits=states @ weight.T)

    return says, weight


def crossed(one, two, length=30):
    ours, theirs = cutter(one), cutter(two)
    return collate(list(text_rows(TEXTS, ours, theirs, length))), ours, theirs


def value_and_gradient(goal, batch, student, weight, teacher):
    weight.grad = None
    terms = goal(student(batch), teacher(batch), batch, CLOCK)
    terms.total({term.unit: count(batch, term.unit) for term in terms.values()}).backward()
    return {name: float(term.sum) for name, term in terms.items()}, weight.grad.clone()


@pytest.mark.parametrize("kind", ["byte level", "unigram", "word piece"])
@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, jsd])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equal_tokenizers_give_exactly_the_plain_loss(kind, divergence, temperature):
    """Through both cuts, the events and the pieces: bit for bit."""
    batch, tokenizer, _ = crossed(kind, kind)
    (student, weight), (teacher, _) = (speaker(len(tokenizer), seed, late=False) for seed in (1, 2))
    events = shared_events(tokenizer, tokenizer)
    across = in_pieces(
        shared(soft(divergence, temperature, on="aligned"), *events, temperature=temperature), at_once=10**6
    )
    plain = soft(divergence, temperature)
    one = value_and_gradient(across, batch, student, weight, elsewhere(teacher))
    two = value_and_gradient(plain, batch, student, weight, teacher)
    assert one[0] == two[0]
    assert torch.equal(one[1], two[1])


def test_pieces_add_up_to_the_whole():
    batch, ours, theirs = crossed("byte level", "unigram")
    (student, weight), (teacher, _) = speaker(len(ours), 1), speaker(len(theirs), 2)
    goal = weighted(
        shared=(1.0, shared(soft(on="aligned"), *shared_events(ours, theirs))), uld=(0.5, uld()), spans=(1.0, spans())
    )
    assert int(batch["aligned"].sum()) % 7
    for whole in (shared(soft(on="aligned"), *shared_events(ours, theirs)), uld()):
        values, gradient = value_and_gradient(whole, batch, student, weight, elsewhere(teacher))
        for at_once in (1, 7, 10**6):
            pieces = value_and_gradient(in_pieces(whole, at_once=at_once), batch, student, weight, elsewhere(teacher))
            assert pieces[0] == pytest.approx(values, rel=1e-5)
            torch.testing.assert_close(pieces[1], gradient, rtol=1e-4, atol=1e-6)
    assert "shared(soft(forward_kl" in repr(goal)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_events_hold_the_probability_of_their_tokens(temperature):
    logits = torch.randn(4, 9, dtype=torch.float64)
    events = [[3], [0, 5], [7, 1, 2]]
    found = (Lumps(events, True)(logits, temperature) / temperature).softmax(-1)
    p = (logits / temperature).softmax(-1)
    expected = torch.stack([p[:, event].sum(-1) for event in [*events, [4, 6, 8]]], -1)
    torch.testing.assert_close(found, expected)
    without = (Lumps(events, False)(logits, temperature) / temperature).softmax(-1)
    torch.testing.assert_close(without, expected[:, :3] / expected[:, :3].sum(-1, keepdim=True))


def test_padded_logits_are_part_of_the_rest_or_left_out():
    logits = torch.randn(2, 8)
    torch.testing.assert_close(Lumps([[0], [1]], True)(logits)[:, 2], logits[:, 2:].logsumexp(-1))
    assert torch.equal(Lumps([[0], [1], [2]], False)(logits), logits[:, :3])


def test_the_rest_is_left_out_where_one_side_has_none():
    """All of ours are theirs too: as a vocabulary that was cut from theirs."""
    ours, theirs = torch.randn(3, 2, requires_grad=True), torch.randn(3, 5)
    batch = {"aligned": torch.ones(1, 3).bool()}
    goal = shared(soft(on="aligned"), [[0], [1]], [[4], [2]], (2, 5))
    found = goal(Signals(logits=ours[None]), Signals(logits=theirs[None]), batch, CLOCK)["soft"].sum
    torch.testing.assert_close(found, forward_kl(ours, theirs[:, [4, 2]]).sum())


def test_gradients_through_lumps():
    lumps = Lumps([[3], [0, 5], [7, 1, 2]], True)
    logits = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: lumps(z, 1.5), logits)


@pytest.mark.parametrize(("one", "two"), [("byte level", "unigram"), ("byte fallback", "word piece")])
def test_the_probability_of_a_chunk_is_the_product_of_its_tokens(one, two):
    """Token by token, in plain loops."""
    batch, ours, theirs = crossed(one, two)
    (student, weight), (teacher, _) = speaker(len(ours), 1), speaker(len(theirs), 2)
    said = [student(batch).logits_at(), teacher({"ids": batch["teacher_ids"]}).logits_at()]
    expected = 0.0
    for i in range(len(batch["ids"])):
        for number in batch["chunk"][i][batch["aligned"][i]].tolist():
            logs = []
            for logits, side in zip(said, ("", "teacher_"), strict=True):
                places = (batch[f"{side}chunk"][i] == number).nonzero()[:, 0].tolist()
                assert all(b == a + 1 for a, b in pairwise(places))
                targets = [int(batch[f"{side}ids"][i][place + 1]) for place in places]
                logs.append(sum(logits[i, p].double().log_softmax(-1)[t] for p, t in zip(places, targets, strict=True)))
            expected += float(squared_gap(logs[0].float(), logs[1].float()))
    found = spans(squared_gap)(student(batch), elsewhere(teacher)(batch), batch, CLOCK)["spans"]
    assert float(found.sum) == pytest.approx(expected, rel=1e-4)
    assert count(batch, found.unit) == int((batch["chunk"].amax(1) > 0).sum()) or count(batch, found.unit) > 1
    found.sum.backward()
    assert weight.grad.abs().sum() > 0


def test_chunks_of_equal_cuts_are_the_targets():
    batch, tokenizer, _ = crossed("byte level", "byte level")
    (student, _), (teacher, _) = speaker(len(tokenizer), 1), speaker(len(tokenizer), 2)
    found = spans(squared_gap)(student(batch), elsewhere(teacher)(batch), batch, CLOCK)["spans"].sum
    targets = batch["targets"][batch["answer"]]
    logs = [-cross_entropy(source(batch).logits_at(batch["answer"]), targets) for source in (student, teacher)]
    torch.testing.assert_close(found, squared_gap(*logs).sum())
    assert float(spans()(teacher(batch), elsewhere(teacher)(batch), batch, CLOCK)["spans"].sum) == 0


def test_uld_by_text_and_by_order():
    batch, ours, theirs = crossed("byte level", "unigram")
    (student, _), (teacher, _) = speaker(len(ours), 1), speaker(len(theirs), 2)
    for on in ("aligned", "paired"):
        term = uld(2.0, on)(student(batch), elsewhere(teacher, on=on)(batch), batch, CLOCK)["uld"]
        mine = student(batch).logits_at(batch[on])
        other = teacher({"ids": batch["teacher_ids"]}).logits_at(batch[f"teacher_{on}"])
        torch.testing.assert_close(term.sum, sorted_distance(mine, other, 2.0).sum())
        assert term.unit == on


def test_nothing_agrees_is_finite():
    batch, ours, theirs = crossed("byte level", "unigram")
    (student, _), (teacher, _) = speaker(len(ours), 1), speaker(len(theirs), 2)
    batch = {name: torch.zeros_like(value) if value.dtype == torch.bool else value for name, value in batch.items()}
    goal = in_pieces(shared(soft(on="aligned"), *shared_events(ours, theirs)))
    for each in (goal, uld(), spans()):
        terms = each(student(batch), elsewhere(teacher)(batch), batch, CLOCK)
        assert [float(term.sum) for term in terms.values()] == [0.0]


def test_refusals():
    batch, ours, theirs = crossed("byte level", "unigram")
    student, _ = speaker(len(ours), 1)
    with pytest.raises(LimbeckError, match=r"needs the signal 'own'.*ask the source"):
        spans()(student(batch), student(batch), batch, CLOCK)
    wrong = elsewhere(lambda b: Signals(logits=torch.full((*b["ids"].shape, len(theirs)), torch.nan)))
    for goal in (spans(), uld(), shared(soft(on="aligned"), *shared_events(ours, theirs))):
        with pytest.raises(LimbeckError, match="the teacher's logits hold NaN or infinity"):
            goal(student(batch), wrong(batch), batch, CLOCK)
    with pytest.raises(LimbeckError, match="temperature must be positive, but got 0"):
        Lumps([[0], [1]], True)(torch.zeros(1, 3), 0.0)
