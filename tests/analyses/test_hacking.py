"""Proxy and golden distances against exact enumeration, and the detectors on curves of known shape."""

import itertools
import math

import pytest
import torch
from torch import nn

from limbeck.analyses.hacking import Look, OracleWatch, bend, hacked
from limbeck.core.batch import next_token_batch
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.losses.divergence import forward_kl
from limbeck.objectives.texts import per_text

SIZE, LENGTH = 4, 4


class Markov(nn.Module):
    """Next-token logits from the last token; token 0 begins every text."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(scale * torch.randn(SIZE, SIZE, generator=generator))

    def says(self, batch) -> Signals:
        return Signals(logits=self.table[batch["ids"]])

    def probability(self, text) -> float:
        p = self.table.detach().double().softmax(-1)
        return math.prod(p[a, b].item() for a, b in itertools.pairwise((0, *text)))


def batch_of_texts(texts) -> dict:
    ids = torch.tensor([(0, *text) for text in texts])
    return next_token_batch(ids, torch.ones_like(ids))


def drawn(model: Markov, count: int, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(count, 1, dtype=torch.int64)
    for _ in range(LENGTH):
        p = model.table.detach()[ids[:, -1]].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], 1)
    return next_token_batch(ids, torch.ones_like(ids))


def exact(reference: Markov, student: Markov) -> float:
    """KL between whole texts, over all of them, per token."""
    total = 0.0
    for text in itertools.product(range(SIZE), repeat=LENGTH):
        p, q = reference.probability(text), student.probability(text)
        total += p * math.log(p / q)
    return total / LENGTH


def test_the_metrics_are_the_kl_of_whole_texts():
    oracle, teacher, student = (Markov(seed) for seed in range(3))
    texts = [[drawn(model, 3000, 5)] for model in (teacher, oracle)]
    watch = OracleWatch(student, student.says, teacher.says, oracle.says, *texts, per_text())
    look = watch.look(0)
    for seen, reference in ((look.proxy, teacher), (look.golden, oracle)):
        assert seen == pytest.approx(exact(reference, student), rel=0.05)
    assert abs(look.proxy - look.golden) > 0.1


def test_every_text_counts_alike_however_long():
    student, teacher = Markov(0), Markov(1)
    batch = batch_of_texts([(1, 2, 3, 1), (2, 2, 2, 2)])
    batch["answer"][1, 1:] = False
    values = forward_kl(student.says(batch).logits, teacher.says(batch).logits)
    (term,) = per_text()(student.says(batch), teacher.says(batch), batch, Clock(0, 1)).values()
    assert term.unit == "row"
    assert term.sum.item() == pytest.approx((values[0, :4].mean() + values[1, 0]).item(), rel=1e-6)
    batch["answer"][:] = False
    (term,) = per_text()(student.says(batch), teacher.says(batch), batch, Clock(0, 1)).values()
    assert term.sum.item() == 0


def test_a_watch_is_a_callback_with_a_memory():
    models = [Markov(seed) for seed in range(3)]
    texts = [batch_of_texts([(1, 2, 3, 1)])]

    def made() -> OracleWatch:
        return OracleWatch(models[0], models[0].says, models[1].says, models[2].says, texts, texts, per_text())

    watch, other = made(), made()
    for step in (10, 20):
        watch({}, Clock(step, 20))
    other.load_state_dict(watch.state_dict())
    assert [look.step for look in other.looks] == [10, 20]
    assert other.verdict() == watch.verdict()
    assert watch.verdict()["golden_ratio"] == 1.0
    with pytest.raises(LimbeckError, match="no texts to measure the proxy"):
        OracleWatch(models[0], models[0].says, models[1].says, models[2].says, [], texts, per_text())


def looks(proxy, golden) -> list[Look]:
    return [Look(10 * i, p, g) for i, (p, g) in enumerate(zip(proxy, golden, strict=True))]


@pytest.mark.parametrize(
    ("proxy", "golden", "since"),
    [
        ([5, 4, 3, 2, 1], [5, 4, 3, 2, 1], None),  # both fall
        ([5, 4, 3, 2, 1], [5, 3, 3.1, 3.5, 4], 30),  # golden turns while proxy falls
        ([5, 4, 3, 3.1, 3.1], [5, 3, 3.1, 3.5, 4], 30),  # ... or stalls
        ([5, 4, 3, 4, 5], [5, 4, 3, 4, 5], None),  # both rise: the student gets worse, nothing is hacked
        ([5, 4, 3, 2, 1], [5, 3, 4, 3, 2.9], None),  # it was a bump
    ],
)
def test_hacking_is_golden_rising_while_proxy_does_not(proxy, golden, since):
    assert hacked(looks(proxy, golden)) == since


def test_a_power_law_is_straight_and_a_floor_bends_it():
    steps = [0, *range(10, 310, 10)]
    law = [9.0] + [5 * s**-0.5 for s in steps[1:]]
    assert bend(steps, law) is None
    bent = [value if step <= 150 else law[15] for step, value in zip(steps, law, strict=True)]
    assert bend(steps, bent) in range(180, 220, 10)  # 0.1 above the line at 1.22 times step 150
    assert bend(steps, bent, threshold=0.3) in range(270, 310, 10)
    noisy = [v * (1 + 0.05 * (-1) ** i) for i, v in enumerate(law)]
    assert bend(steps, noisy) is None
    spike = [v * (3 if s == 200 else 1) for s, v in zip(steps, law, strict=True)]
    assert bend(steps, spike) is None
    faster = [v * (1 if s < 150 else 0.5) for s, v in zip(steps, law, strict=True)]
    assert bend(steps, faster) is None, "below the line is no bend"


def test_too_few_points_tell_nothing():
    assert bend([0, 1, 2, 3], [4, 3, 2, 1]) is None
    with pytest.raises(LimbeckError, match="0 < early < 1"):
        bend([1, 2], [1, 1], early=0)
