"""MiniLLM: the gradient of the reverse KL of whole texts by exact enumeration, and the notes on what was written."""

import itertools
import math

import pytest
import torch
from tiny_llms import build

from limbeck.core.batch import next_token_batch
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.data.samples import Sample, batch_of
from limbeck.data.writer import Sampling, Writer
from limbeck.losses.policy_gradient import returns_to_go
from limbeck.methods.language_models.minillm import Config, Scored, mixture, policy_and_single_step, spoken
from limbeck.sources.model import model_source

SIZE, LENGTH = 3, 3


def tables() -> list[torch.Tensor]:
    """Next-token logits by last token, of student and teacher."""
    return [torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]


def log_probability(table: torch.Tensor, text: tuple[int, ...]) -> torch.Tensor:
    steps = itertools.pairwise((0, *text))
    return torch.stack([table[a].log_softmax(-1)[b] for a, b in steps]).sum()


def test_policy_and_single_step_together_are_the_gradient_of_the_kl_of_whole_texts():
    student, teacher = tables()
    student.requires_grad_()
    texts = list(itertools.product(range(SIZE), repeat=LENGTH))
    q = torch.stack([log_probability(student, text) for text in texts])
    p = torch.stack([log_probability(teacher, text) for text in texts])
    (wanted,) = torch.autograd.grad((q.exp() * (q - p)).sum(), student)

    found = {"paper": torch.zeros_like(wanted), "released": torch.zeros_like(wanted)}
    goal = policy_and_single_step(clip=0.2)
    for text, share in zip(texts, q.detach().exp(), strict=True):
        ids = torch.tensor([(0, *text)])
        batch = next_token_batch(ids, torch.ones_like(ids))
        ours, theirs = (Signals(logits=table[ids]) for table in (student, teacher))
        old, reward = spoken(ours, batch).detach(), spoken(theirs, batch) - spoken(ours, batch).detach()
        for returns in found:
            advantage = returns_to_go(reward, batch["answer"], mean=False, later_only=returns == "paper")
            notes = {"old": old, "advantage": advantage, "weight": torch.ones_like(old)}
            terms = goal(ours, theirs, batch | notes, Clock(0, 1))
            loss = terms["policy"].sum + terms["single"].sum
            found[returns] += share * torch.autograd.grad(loss, student, retain_graph=True)[0]
    torch.testing.assert_close(found["paper"], wanted, atol=1e-6, rtol=1e-5)
    assert (found["released"] - wanted).abs().max() > 0.01, "the released code counts the single step twice"


@pytest.fixture
def written():
    student, teacher = build("gpt2"), build("gpt2", seed=3)
    cfg = Config(mixed=0.3)
    rows = Writer(student, Sampling(6), ends=[1], mixed=(teacher, 0.3))([Sample([5, 6, 7], []), Sample([4], [])], 2)
    return student, teacher, Scored(model_source(student), model_source(teacher), Writer(student), cfg)(rows, 0)


def chances(model, row: Sample) -> list[float]:
    with torch.no_grad():
        said = model(torch.tensor([row.prompt + row.completion])).logits[0].log_softmax(-1)
    start = len(row.prompt) - 1
    return [said[start + i, token].item() for i, token in enumerate(row.completion)]


def test_notes_are_what_both_said_when_it_was_written(written):
    student, teacher, rows = written
    follows = []
    for row in rows:
        q, p = chances(student, row), chances(teacher, row)
        assert row.notes["old"] == pytest.approx(q, abs=1e-5)
        wanted = [math.exp(a) / (0.7 * math.exp(a) + 0.3 * math.exp(b)) for a, b in zip(q, p, strict=True)]
        assert row.notes["weight"] == pytest.approx(wanted, rel=1e-4)
        rewards = [b - a for a, b in zip(q, p, strict=True)]
        follows += [sum(rewards[t + 1 :]) / max(1, len(rewards) - t - 1) for t in range(len(rewards))]
    mean = sum(follows) / len(follows)
    spread = math.sqrt(sum((x - mean) ** 2 for x in follows) / (len(follows) - 1))
    advantages = [x for row in rows for x in row.notes["advantage"]]
    assert advantages == pytest.approx([(x - mean) / spread for x in follows], abs=1e-4)


def test_the_first_use_of_a_text_has_the_ratio_of_its_sampling(written):
    """At the weights that wrote it, rho is the importance weight, and clipping acts on it."""
    student, teacher, rows = written
    batch = batch_of(rows)
    terms = policy_and_single_step(0.2)(model_source(student)(batch), model_source(teacher)(batch), batch, Clock(0, 1))
    total = 0.0
    for row in rows:
        for weight, advantage in zip(row.notes["weight"], row.notes["advantage"], strict=True):
            total += max(-advantage * weight, -advantage * min(max(weight, 0.8), 1.2))
    assert terms["policy"].sum.item() == pytest.approx(total, rel=1e-3, abs=1e-4)


def test_mixtures_at_their_ends():
    ours, theirs = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -0.5])
    assert torch.equal(mixture(ours, theirs, 0.0), ours)
    assert torch.equal(mixture(ours, theirs, 1.0), theirs)
    half = (0.5 * ours.exp() + 0.5 * theirs.exp()).log()
    torch.testing.assert_close(mixture(ours, theirs, 0.5), half)
