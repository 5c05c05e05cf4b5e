"""Objectives on readouts take the fused form by themselves: the same numbers as from logits, however a step is cut."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from fused_child import GOALS, RUNS, batches, stage_of
from two_processes import run_twice

from limbeck.core.fit import fit
from limbeck.core.save import load_tensors
from limbeck.core.signals import Readout, Signals
from limbeck.core.terms import Clock, count
from limbeck.losses import sweep
from limbeck.losses.divergence import jsd, reverse_kl, total_variation
from limbeck.objectives import tokens
from limbeck.objectives.tokens import compare, hard, soft
from limbeck.objectives.weighted import weighted
from limbeck.sources.ensemble import mean_source
from limbeck.sources.vocabulary import kept

NOW = Clock(3, 10)
STEPS = 3


def readout(width, seed, learns=False, **settings):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(*s, generator=generator) for s in ((4, 6, width), (40, width), (40,)))
    for tensor in (hidden, weight, bias):
        tensor.requires_grad_(learns)
    return Readout(hidden, weight, bias, **settings)


def distance(student, teacher, temperature):
    """A divergence of the user's own."""
    return (student - teacher).square().sum(-1) / temperature


def total(objective, student, teacher, data):
    terms = objective(student, teacher, data, NOW)
    return terms.total({unit: count(data, unit) for unit in terms.units()})


@pytest.fixture
def data():
    return batches(1)[0]


@pytest.fixture
def passes(monkeypatch):
    """The number of losses in every sweep that is made."""
    made = []
    original = tokens.fused_parts
    monkeypatch.setattr(tokens, "fused_parts", lambda s, t, parts: made.append(len(parts)) or original(s, t, parts))
    return made


PLAIN = {
    "forward_kl": soft(),
    "warm": soft(reverse_kl, temperature=lambda clock: 1 + clock.step, rescale=True),
    "jsd": soft(partial(jsd, beta=0.1), on="mask"),
    "total_variation": soft(total_variation),
    "hard": hard(),
    "mixed": weighted(kl=(lambda clock: 0.1 * clock.step, soft(temperature=2.0, rescale=True)), ce=(0.3, hard())),
    "two masks": weighted(kl=(1.0, soft(on="mask")), ce=(0.5, hard()), jsd=(0.0, soft(jsd))),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("given", ["readout", "logits", "ensemble", "fewer tokens"])
def test_the_same_numbers_as_from_logits(name, given, data, passes):
    ours, theirs = readout(5, 0, learns=True, softcap=4.0), readout(7, 1, scale=0.5)
    student, teacher = Signals(readout=ours), Signals(readout=theirs)
    if given == "logits":
        teacher = Signals(logits=theirs.at())
    if given == "ensemble":
        teacher = mean_source([lambda batch: Signals(readout=theirs), lambda batch: Signals(logits=theirs.at() + 1)])(
            {}
        )
    if given == "fewer tokens":
        student, teacher = (kept(lambda batch, s=s: s, range(1, 40))(data) for s in (student, teacher))
        data["targets"] = data["targets"].clamp(max=38)
    both = student, Signals(logits=student.logits_at())
    got, expected = (total(PLAIN[name], said, teacher, data) for said in both)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    slopes = (torch.autograd.grad(x, [ours.hidden, ours.weight, ours.bias], retain_graph=True) for x in (got, expected))
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-6)
    assert passes == {"mixed": [2], "two masks": [1, 2]}.get(name, [1])


def test_a_lazy_teacher_is_asked_chunk_by_chunk(data, monkeypatch):
    theirs, asked = readout(7, 1), []

    class Told:
        by_chunk = True

        def at(self, positions=None):
            asked.append(int(positions.sum()))
            return theirs.at(positions)

    monkeypatch.setattr(sweep, "CHUNK_ROWS", 2)
    monkeypatch.setattr(sweep, "CHUNK_LOGITS", {"cpu": 0})
    student = Signals(readout=readout(5, 0))
    got = total(soft(), student, Signals(readout=Told()), data)
    assert asked == [2] * (int(data["answer"].sum()) // 2) + [1] * (int(data["answer"].sum()) % 2)
    torch.testing.assert_close(got, total(soft(), student, Signals(readout=theirs), data))


def test_what_the_fused_form_cannot_do_goes_through_logits(data, passes):
    student, teacher = Signals(readout=readout(5, 0, learns=True)), Signals(readout=readout(7, 1))
    where = data["answer"]
    expected = distance(student.logits_at(where), teacher.logits_at(where), 1.0).mean()
    torch.testing.assert_close(total(soft(distance), student, teacher, data), expected)
    assert passes == []
    total(weighted(a=(1.0, soft(distance)), b=(1.0, soft()), c=(1.0, hard())), student, teacher, data)
    assert passes == [2]


def test_a_teacher_that_learns_gets_its_gradient(data, passes):
    student, theirs = Signals(readout=readout(5, 0, learns=True)), readout(7, 1, learns=True)
    for teacher in (Signals(readout=theirs), Signals(logits=theirs.at())):
        (gradient,) = torch.autograd.grad(total(soft(jsd), student, teacher, data), theirs.weight)
        assert gradient.abs().max() > 0
    assert passes == []
    with torch.no_grad():
        total(soft(jsd), student, Signals(readout=theirs), data)
    assert passes == [1]


def test_several_comparisons_keep_their_order(data):
    student, teacher = Signals(readout=readout(5, 0)), Signals(readout=readout(7, 1))
    goals = [soft(distance), soft(jsd, on="mask"), hard(), soft(reverse_kl, temperature=2.0, rescale=True)]
    together = compare([goal.ask(NOW) for goal in goals], student, teacher, data)
    for values, goal in zip(together, goals, strict=True):
        (term,) = goal(student, teacher, data, NOW).values()
        torch.testing.assert_close(values.sum(), term.sum)


@pytest.mark.parametrize("name", GOALS)
def test_micro_batches_change_nothing(name, tmp_path):
    """One batch of four rows, two of two, four of one; positions are unequally many."""
    found = []
    for parts in (1, 2, 4):
        stage, net = stage_of(name, STEPS, parts)
        fit(stage, tmp_path / str(parts))
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    start = torch.cat([p.detach().flatten() for p in stage_of(name, STEPS, 1)[1].parameters()])
    assert not torch.allclose(found[0], start, atol=1e-3)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes have trained, under DDP and in the end FSDP2."""
    out = tmp_path_factory.mktemp("pair")
    run_twice(Path(__file__).with_name("fused_child.py"), out, STEPS)
    return out


@pytest.mark.parametrize(("mode", "name"), RUNS)
def test_two_processes_are_one_with_twice_the_batch(pair, tmp_path, mode, name):
    stage, net = stage_of(name, STEPS, 1)
    fit(stage, tmp_path)
    came, _ = load_tensors(pair / f"{mode}-{name}.safetensors")
    for key, value in net.named_parameters():
        torch.testing.assert_close(came[key], value.detach(), atol=1e-5, rtol=0)
