"""The code book: every token has its place, and directions tell what the common shares do not."""

import math

import numpy as np
import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.data.store.book import ordered, plain_book
from limbeck.data.store.rest import divergence, spread, tilted
from limbeck.data.store.sounding import make_book


def made(count, size, rank, seed=0, noise=0.0):
    """Log-probabilities n v whose logits have ``rank`` directions around a common distribution."""
    world, draw = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    common = -1.2 * torch.log(torch.arange(1, size + 1).float())[torch.randperm(size, generator=world)]
    loads = torch.randn(rank, size, generator=world) * 0.7
    logits = common + torch.randn(count, rank, generator=draw) @ loads
    return (logits + noise * torch.randn(count, size, generator=draw)).log_softmax(-1)


@pytest.mark.parametrize("seed", range(10))
def test_buckets_cover_the_vocabulary_once(seed):
    draw = np.random.default_rng(seed)
    size = int(draw.choice([1, 2, 3, 100, 5000]))
    book = ordered(plain_book(size), draw.pareto(0.3, size) + 1e-3, 64)
    assert sorted(book.order) == list(range(size))
    assert (book.order[book.place] == np.arange(size)).all()
    ends = book.starts + (1 << book.widths.astype(int))
    assert book.starts[0] == 0
    assert (ends[:-1] == book.starts[1:]).all()
    assert book.starts[-1] < size <= ends[-1]


def test_common_tokens_come_first():
    hits = np.array([1.0, 50, 3, 0.1])
    assert ordered(plain_book(4), hits, 2).order.tolist() == [1, 2, 0, 3]


def test_directions_tell_a_rest_of_few_directions():
    book = make_book(made(600, 400, 5), 16)
    fresh = made(100, 400, 5, seed=1)
    plain, told = (divergence(one, fresh, 16).mean() for one in (book.first(0), book))
    assert told < 0.04 < plain
    assert book.tilts <= 8
    assert book.tables.log_share.exp().sum() == pytest.approx(1)


def test_the_divergence_is_that_of_the_whole_distributions():
    book, fresh = make_book(made(400, 60, 3), 8, tilts=4), made(20, 60, 3, seed=1)
    ids = fresh.topk(8, -1).indices
    steps, reach = tilted(book, fresh, ids)
    rest = fresh.exp().scatter(1, ids, 0.0).sum(1).log()
    told = (spread(book.tables, steps) + (rest - reach)[:, None]).scatter(1, ids, fresh.gather(1, ids))
    torch.testing.assert_close(told.exp().sum(1), torch.ones(20))
    torch.testing.assert_close(divergence(book, fresh, 8), (fresh.exp() * (fresh - told)).sum(1), atol=1e-5, rtol=1e-4)


def test_there_are_no_more_directions_than_are_asked_for():
    assert make_book(made(400, 300, 5), 16, within=0.5).tilts == 0
    assert make_book(made(400, 300, 5), 16, within=1e-9, tilts=3).tilts == 3
    numbers = [make_book(made(400, 300, 12), 16, within=nats).tilts for nats in (1.0, 0.03, 0.003)]
    assert numbers == sorted(numbers)
    assert numbers[0] == 0 < numbers[2]


def test_the_same_sample_gives_the_same_book():
    one, two = (make_book(made(300, 200, 4), 8) for _ in range(2))
    torch.manual_seed(1)
    for name in ("rarity", "widths", "shares", "directions", "scales"):
        assert (getattr(one, name) == getattr(two, name)).all()


def test_forbidden_tokens_get_nothing_and_break_nothing():
    sample = made(200, 100, 3)
    sample[:, 5] = -math.inf
    sample[::2, 6] = -math.inf
    sample = sample.log_softmax(-1)
    book = make_book(sample.clone(), 8)
    assert book.tables.log_share[5] < book.tables.log_share.max() - 6
    assert torch.isfinite(divergence(book, sample, 8)).all()


@pytest.mark.parametrize(("count", "size", "top"), [(1, 10, 4), (3, 10, 10), (9, 4, 64), (40, 2, 1)])
def test_small_samples_and_vocabularies_give_a_book(count, size, top):
    book = make_book(made(count, size, 1), top)
    assert book.size == size
    assert torch.isfinite(divergence(book, made(5, size, 1, seed=2), top)).all()


def test_too_many_directions_are_refused():
    with pytest.raises(LimbeckError, match="0 to 64 directions"):
        make_book(made(10, 10, 1), 2, tilts=65)
