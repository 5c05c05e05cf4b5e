"""A model's moving average as a source."""

import pytest
import torch
from torch import nn

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.stage import Stateful
from limbeck.core.terms import Clock
from limbeck.sources.average import AverageSource


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


def source(model):
    return lambda batch: Signals(logits=model(batch["x"]))


def test_follows_the_model_and_copies_buffers():
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    teacher = AverageSource(model, source, decay=0.9)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    model(torch.randn(5, 3))  # moves the statistics of the norm
    teacher.follow({}, Clock(1, 10))
    for old, kept in zip(before, teacher.average.parameters(), strict=True):
        torch.testing.assert_close(kept, old + 0.1)
        assert not kept.requires_grad
    assert torch.equal(teacher.average[1].running_mean, model[1].running_mean)
    assert not teacher.average.training
    assert model.training


def test_decay_may_be_a_schedule():
    model = net()
    teacher = AverageSource(model, source, decay=lambda clock: 1.0 if clock.step < 5 else 0.0)
    start = teacher.average[0].weight.clone()
    with torch.no_grad():
        model[0].weight.zero_()
    teacher.follow({}, Clock(1, 10))
    assert torch.equal(teacher.average[0].weight, start)
    teacher.follow({}, Clock(5, 10))
    assert torch.equal(teacher.average[0].weight, torch.zeros(3, 3))


def test_is_a_source_and_remembers():
    model, other = net(), net()
    teacher, fresh = AverageSource(model, source), AverageSource(other, source)
    with torch.no_grad():
        model[0].weight.add_(5.0)
    teacher.follow({}, Clock(1, 10))
    assert isinstance(teacher, Stateful)
    fresh.load_state_dict(teacher.state_dict())
    batch = {"x": torch.randn(2, 3)}
    assert torch.equal(teacher(batch).logits, fresh(batch).logits)


def test_refuses_a_decay_that_is_none():
    with pytest.raises(LimbeckError, match="decay must lie in"):
        AverageSource(net(), source, decay=1.5)
