"""What is kept of a row comes back: the same tokens, log-probabilities within 0.04 nat, and nothing else changed."""

import math

import numpy as np
import pytest

from limbeck.core.check import LimbeckError
from limbeck.data.store.book import Book, ordered, plain_book
from limbeck.data.store.records import SPAN, STEPS, Kept, decode, encode
from limbeck.data.store.states import decode_states, encode_states


def some_book(draw, size, top, tilts):
    book = plain_book(size)
    if draw.random() < 0.7:
        book = ordered(book, draw.pareto(0.5, size) + 0.01, top)
    directions = draw.integers(-127, 128, (size, tilts)).astype(np.int8)
    return Book(book.rarity, book.widths, book.shares, directions, np.ones((2, tilts), np.float32))


def some_kept(draw, count, size, top, tilts, absent):
    ids = np.stack([draw.permutation(size)[:top] for _ in range(count)])
    log_p = -np.sort(draw.exponential(draw.uniform(0.1, 3), (count, top)).cumsum(1), 1)
    log_p = np.where((draw.random((count, top)) < absent) & (np.arange(top) > 0), -np.inf, log_p)
    rest = draw.uniform(0, 0.9, count) if top < size else np.zeros(count)
    log_p += np.log(1 - rest)[:, None] - np.logaddexp.reduce(log_p, 1)[:, None]
    with np.errstate(divide="ignore"):
        rest = np.log(rest)
    tilt = draw.integers(-127, 128, (count, tilts)).astype(np.int8)
    return Kept(ids, log_p.astype(np.float32), rest.astype(np.float32), tilt, draw.normal(0, 3, count))


@pytest.mark.parametrize("seed", range(40))
def test_random_rows_come_back(seed):
    draw = np.random.default_rng(seed)
    size = int(draw.choice([2, 5, 40, 1000, 70_000]))
    top, count, tilts = int(draw.integers(1, min(size, 80) + 1)), int(draw.integers(1, 60)), int(draw.choice([0, 3]))
    book = some_book(draw, size, top, tilts)
    kept = some_kept(draw, count, size, top, tilts, absent=draw.choice([0, 0.3]))
    positions = np.sort(draw.permutation(int(count * draw.choice([1, 1.5, 20])))[:count])
    found, told = decode(np.frombuffer(encode(positions, kept, book), np.uint8), book)
    assert (found == positions).all()
    assert (told.tilt == kept.tilt).all()
    if tilts:
        np.testing.assert_allclose(told.reach, kept.reach, rtol=1e-3, atol=1e-3)
    for row in range(count):
        near = kept.log_p[row] >= kept.log_p[row].max() - SPAN / STEPS + 1
        known = {t: p for t, p in zip(told.ids[row], told.log_p[row], strict=True) if np.isfinite(p)}
        assert set(kept.ids[row][near]) <= set(known) <= set(kept.ids[row][np.isfinite(kept.log_p[row])])
        gaps = [abs(known[t] - p) for t, p in zip(kept.ids[row][near], kept.log_p[row][near], strict=True)]
        assert max(gaps) <= 0.04
        assert np.exp(told.log_p[row].astype(float)).sum() + math.exp(told.rest[row]) == pytest.approx(1, abs=1e-5)
        assert math.exp(told.rest[row]) == pytest.approx(math.exp(kept.rest[row]), rel=1e-3, abs=1e-5)


def test_the_best_token_is_all_but_exact():
    draw = np.random.default_rng(0)
    kept = some_kept(draw, 50, 1000, 20, 0, absent=0)
    _, told = decode(np.frombuffer(encode(np.arange(50), kept, plain_book(1000)), np.uint8), plain_book(1000))
    assert np.abs(told.log_p.max(1) - kept.log_p.max(1)).max() < 0.02


def test_far_below_the_best_a_token_counts_among_the_rest():
    none = np.zeros((1, 0), np.int8)
    kept = Kept(np.array([[4, 9]]), np.array([[0.0, -40.0]]), np.array([-np.inf]), none, np.zeros(1))
    _, told = decode(np.frombuffer(encode(np.array([3]), kept, plain_book(10)), np.uint8), plain_book(10))
    assert told.ids.tolist() == [[4]]
    assert told.log_p[0, 0] == pytest.approx(0, abs=1e-6)


def test_sixty_four_random_tokens_of_152k_take_at_most_170_bytes():
    """The worst case: no token is commoner than another, so the code book cannot help."""
    draw, size, top, count = np.random.default_rng(0), 151_936, 64, 100
    ids = np.stack([draw.choice(size, top, replace=False) for _ in range(count)])
    ranks = np.arange(1, top + 1)
    log_p = np.sort(-1.2 * np.log(ranks) + draw.normal(0, 0.3, (count, top)), 1)[:, ::-1] - 3.5
    kept = Kept(ids, log_p, np.full(count, -4.0), np.zeros((count, 0), np.int8), np.zeros(count))
    assert len(encode(np.arange(count), kept, plain_book(size))) / count <= 170


def test_a_position_without_any_token_is_refused():
    kept = Kept(np.array([[4]]), np.array([[-np.inf]]), np.array([0.0]), np.zeros((1, 0), np.int8), np.zeros(1))
    with pytest.raises(LimbeckError, match="a position keeps no token"):
        encode(np.array([0]), kept, plain_book(10))


def test_states_come_back_however_large():
    states = np.random.default_rng(0).normal(0, 1, (7, 2, 16)).astype(np.float32) * np.array([1e6, 1e-3])[:, None]
    positions = np.array([0, 1, 2, 9, 10, 30, 31])
    found, told = decode_states(np.frombuffer(encode_states(positions, states), np.uint8), 2)
    assert (found == positions).all()
    largest = np.abs(states).max(-1, keepdims=True)
    np.testing.assert_allclose(told / largest, states / largest, atol=5e-4)
